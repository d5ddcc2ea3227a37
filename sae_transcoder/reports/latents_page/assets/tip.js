"use strict";
// The tooltip of a context's token, under the pointer or at the keyboard's focus.

const told = new WeakMap(); // token's element: function that gives the rows of its tooltip, [label, text or node]

let tipped = null; // the token whose tooltip is shown

function showTip(token) {
  const tip = document.getElementById("tip");
  const rows = told.get(token)().map(([label, value]) => element("tr", {}, element("th", {scope: "row"}, label), element("td", {}, value)));
  tip.replaceChildren(element("table", {}, ...rows));
  tip.hidden = false;
  tipped = token;
  token.setAttribute("aria-describedby", "tip");
  placeTip();
}

// Below its token, or above where there is no room.
function placeTip() {
  if (!tipped) return;
  const tip = document.getElementById("tip");
  const box = tipped.getBoundingClientRect(), {offsetWidth: width, offsetHeight: height} = tip;
  const below = box.bottom + 8 + height < innerHeight;
  tip.style.left = `${Math.max(4, Math.min(box.left, document.documentElement.clientWidth - width - 4))}px`;
  tip.style.top = `${below ? box.bottom + 8 : Math.max(4, box.top - height - 8)}px`;
}

// Whether one was shown.
function hideTip() {
  const shown = tipped !== null;
  tipped?.removeAttribute("aria-describedby");
  document.getElementById("tip").hidden = true;
  tipped = null;
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
document.addEventListener("scroll", placeTip, {passive: true, capture: true}); // the focus may scroll the page or a line
