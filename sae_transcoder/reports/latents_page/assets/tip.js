"use strict";
// The tooltip of a context's token, under the pointer or at the keyboard's focus.

const told = new WeakMap(); // token's element: rows of its tooltip, [label, text or node]

function showTip(token) {
  const tip = document.getElementById("tip");
  const rows = told.get(token).map(([label, value]) => element("tr", {}, element("th", {scope: "row"}, label), element("td", {}, value)));
  tip.replaceChildren(element("table", {}, ...rows));
  tip.hidden = false;
  const box = token.getBoundingClientRect(), {offsetWidth: width, offsetHeight: height} = tip;
  const below = box.bottom + 8 + height < innerHeight;
  tip.style.left = `${Math.max(4, Math.min(box.left, document.documentElement.clientWidth - width - 4))}px`;
  tip.style.top = `${below ? box.bottom + 8 : Math.max(4, box.top - height - 8)}px`;
  token.setAttribute("aria-describedby", "tip");
}

function hideTip() {
  const tip = document.getElementById("tip");
  const shown = !tip.hidden;
  tip.hidden = true;
  return shown;
}

for (const [event, leaves] of [["pointerover", "pointerout"], ["focusin", "focusout"]]) {
  document.addEventListener(event, ({target}) => {
    const token = target.closest?.(".token");
    if (token && told.has(token)) showTip(token);
  });
  document.addEventListener(leaves, ({target}) => {
    if (target.closest?.(".token")) hideTip();
  });
}
document.addEventListener("scroll", hideTip, {passive: true});
