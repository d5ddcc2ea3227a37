"""The page of latents opened in a browser, and made-up latents to open it on."""

from pathlib import Path
from typing import Any

import numpy as np

ODD = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\u2028",
    "\ufffd",
    "\u202eright",
    "",
    "y" * 5000,
    "`${1}`\\",
    "א",
]
WORDS = ["\n", "    ", "\t", " ", " return", "def", "(", "):", " Self", ".", " in", " for", " é", "'"]
VOCABULARY = [*WORDS, *ODD, *(f" name{i}" for i in range(80))]


def corpus(tokens: int) -> np.ndarray:
    """Ids, those of the first words more often."""
    rng = np.random.default_rng(5)
    return (len(VOCABULARY) * rng.random(tokens) ** 2).astype(int)


CONTRASTS = """() => {
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const painted = colours => {  // one upon the other, as [red, green, blue]
        for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const light = channels => {
        const [r, g, b] = channels.map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
    };
    const hasText = e => [...e.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    const shown = [...document.querySelectorAll("body *")].filter(e => e.checkVisibility() && hasText(e));
    return shown.filter(e => !e.closest("svg, script, option, :disabled")).map(e => {
        const grounds = [];
        for (let at = e; at; at = at.parentElement) grounds.unshift(getComputedStyle(at).backgroundColor);
        const ground = light(painted(["white", ...grounds])), text = light(painted(["white", ...grounds, getComputedStyle(e).color]));
        return Math.max(ground, text) / Math.min(ground, text);
    });
}"""  # of every element with text


class Reader:
    """The page in a browser, what it asked for and complained of."""

    def __init__(self, browser: Any, index: Path):
        self.folder, self.url = index.parent.as_uri(), index.as_uri()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page = browser.new_page(viewport={"width": 1300, "height": 900})
        self.page.set_default_timeout(10_000)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))

    def open(self, link: str = "") -> None:
        """Opens an address of the page from the beginning."""
        self.page.goto("about:blank")
        self.page.goto(self.url + link)
        self.page.wait_for_selector(".row .excerpt, article, #fault:not([hidden])")

    def go(self, link: str) -> None:
        """Follows an address within the page."""
        self.page.evaluate("link => { location.hash = link; }", link)
        self.page.wait_for_selector(".row .excerpt" if link.count("/") == 2 else "article")

    def latents(self) -> list[int]:
        """The latents of the rows within sight, from the top."""
        return [int(text.replace(",", "")) for text in self.page.locator(".row .latent").all_inner_texts()]

    def status(self) -> str:
        return self.page.locator("[role=status]").inner_text()

    def wait_for_status(self, text: str) -> None:
        self.page.wait_for_function("text => document.querySelector('[role=status]').textContent === text", arg=text)

    def wait_for_title(self, text: str) -> None:
        self.page.wait_for_function("text => document.title.startsWith(text)", arg=text)
