"""The page of latents in a browser: what it shows is what the files hold, it asks for nothing beyond its folder, and it is quick."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from helpers.latents_reader import CONTRASTS, ODD, VOCABULARY, Reader, corpus
from helpers.made_up_latents import MadeUp, write_latents
from sae_transcoder.reports.latents_page.page import coder_link, write_page

RUN, OTHER = "run a/</title>&", "b"
CODER, TWIN = "layers.2/seed0", "layers.2/seed1"


@pytest.fixture(scope="module")
def made() -> dict[str, MadeUp]:
    return {
        RUN: MadeUp(corpus(6000), VOCABULARY, latents=1500, coders=(CODER, TWIN), matryoshka=True),
        OTHER: MadeUp(corpus(3000), VOCABULARY, latents=40, coders=("layers.1.mlp",), writes=False),
    }


@pytest.fixture(scope="module")
def index(made: dict[str, MadeUp], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents")
    folders = [(title, write_latents(folder / str(i), each, seed=i)) for i, (title, each) in enumerate(made.items())]
    return write_page(folders, folder / "page")


@pytest.fixture(scope="module")
def reader(browser: Any, index: Path) -> Iterator[Reader]:
    reader = Reader(browser, index)
    yield reader
    assert reader.complaints == []
    assert [url for url in reader.requests if not url.startswith((reader.folder, "data:,", "about:"))] == []


def rows(table: pa.Table, latent: int) -> list[dict]:
    """The rows of a latent."""
    return [row for row in table.to_pylist() if row["latent"] == latent]


@pytest.mark.needs("chromium")
class TestInABrowser:
    def test_it_opens_at_the_first_coder_and_offers_the_others(self, reader: Reader) -> None:
        reader.open()
        assert reader.page.evaluate("location.hash") == coder_link(RUN, CODER).replace("'", "%27")
        options = reader.page.locator("#chooser option").all_inner_texts()
        assert options == [f"{RUN} · {CODER}", f"{RUN} · {TWIN}", f"{OTHER} · layers.1.mlp"]
        reader.page.select_option("#chooser", index=2)
        reader.wait_for_title("layers.1.mlp · b")
        assert reader.page.locator(".head").inner_text().split("\n")[-1] == "strongest context"  # no level, and nothing is raised
        reader.page.go_back()
        reader.wait_for_title(f"{CODER} · {RUN}")

    def test_a_row_shows_what_the_files_hold(self, reader: Reader, made: dict[str, MadeUp]) -> None:
        reader.open(coder_link(RUN, CODER))
        latents, contexts = made[RUN].tables[CODER]
        row, best = rows(latents, 3)[0], rows(contexts, 3)[0]
        shown = reader.page.locator(".row", has=reader.page.get_by_text("3", exact=True)).first
        density, most, mean, level = (shown.locator(f".{name}").inner_text() for name in ("density", "max", "mean", "level"))
        assert float(density.rstrip(" %")) == pytest.approx(100 * row["density"], rel=0.005)
        assert float(most) == pytest.approx(row["max_activation"], rel=0.005)
        assert float(mean) == pytest.approx(row["mean_activation"], rel=0.005)
        assert level == "0"
        peak = VOCABULARY[best["tokens"][best["position"] - best["start"]]]
        assert shown.locator(".excerpt .at").inner_text() == {" ": "·", "    ": "····", "\t": "→", "\n": "↵"}.get(peak, peak)
        assert shown.locator(".small-histogram path").count() == 1

    def test_it_sorts_by_each_column(self, reader: Reader, made: dict[str, MadeUp]) -> None:
        reader.open(coder_link(RUN, CODER))
        latents = made[RUN].tables[CODER][0].filter(pa.compute.field("fires") > 0).to_pydict()
        for name, column in (("density", "density"), ("max", "max_activation"), ("mean", "mean_activation")):
            for falling in (True, False):
                reader.page.get_by_role("button", name=name, exact=True).click()
                order = np.argsort(np.array(latents[column]) * (-1 if falling else 1), kind="stable")
                seen = reader.latents()
                assert seen == np.array(latents["latent"])[order][: len(seen)].tolist()
                assert reader.page.locator(f"[data-column={name}]").get_attribute("aria-sort") == (
                    "descending" if falling else "ascending"
                )
        for name in ("strongest context", "raised tokens", "activations", "level", "latent"):
            reader.page.get_by_role("button", name=name, exact=True).click()
            assert reader.page.locator("[aria-sort=ascending]").inner_text().startswith(name)
        assert reader.latents()[:6] == [0, 1, 2, 3, 4, 5]

    def test_it_filters_by_density_and_hides_the_dead_until_they_are_asked_for(
        self, reader: Reader, made: dict[str, MadeUp]
    ) -> None:
        reader.open(coder_link(RUN, CODER))
        density = np.array(made[RUN].tables[CODER][0]["density"])
        dead = int((density == 0).sum())
        assert reader.status() == f"{1500 - dead:,} of 1,500 latents"
        reader.page.get_by_text(f"show {dead} that never fire").click()
        assert reader.status() == "1,500 of 1,500 latents"
        assert 6 in reader.latents()
        reader.page.get_by_text(f"show {dead} that never fire").click()
        reader.page.get_by_label("least density").fill("0.1")
        reader.page.get_by_label("largest density").fill("1 %")
        assert reader.status() == f"{((density >= 0.001) & (density <= 0.01)).sum():,} of 1,500 latents"
        reader.page.get_by_label("least density").fill("much")
        assert reader.status() == "density “much”: not a number"

    def test_the_search_finds_what_contexts_and_tokens_contain(self, reader: Reader, made: dict[str, MadeUp]) -> None:
        reader.open(coder_link(RUN, CODER))
        latents, contexts = (table.to_pylist() for table in made[RUN].tables[CODER])
        for query in ("self", "name41", "def return", "</script>", "nowhere"):  # across tokens, and whatever the case
            found = {row["latent"] for row in contexts if query in "".join(VOCABULARY[i] for i in row["tokens"]).lower()}
            for row in latents:
                if row["fires"] and any(query in VOCABULARY[i].lower() for i in row["raised"] + row["lowered"]):
                    found.add(row["latent"])
            reader.page.locator("#search").fill(query)
            reader.wait_for_status(f"{len(found):,} of 1,500 latents")
            reader.page.wait_for_selector("progress", state="hidden")
            assert reader.latents() == sorted(found)[: len(reader.latents())]
        reader.page.keyboard.press("Escape")
        assert reader.page.locator("#search").input_value() == ""

    def test_the_search_for_a_number_shows_that_latent_first(self, reader: Reader, made: dict[str, MadeUp]) -> None:
        reader.open(coder_link(RUN, CODER))
        latents = made[RUN].tables[CODER][0].to_pylist()
        silent = next(row["latent"] for row in latents if not row["fires"])
        for query, number in (("1030", 1030), ("1,030", 1030), ("41", 41), (str(silent), silent)):  # "41" stands in texts too
            reader.page.locator("#search").fill(query)
            reader.page.locator(".row").first.filter(has_text="its number").wait_for()
            reader.page.wait_for_selector("progress", state="hidden")
            assert reader.latents()[0] == number
            reader.page.locator("#search").fill("")
            reader.page.locator(".where").first.wait_for(state="detached")
        reader.page.locator("#search").fill("1500")
        reader.wait_for_status("0 of 1,500 latents")

    def test_a_latent_shows_its_contexts_by_range_and_its_tokens(self, reader: Reader, made: dict[str, MadeUp]) -> None:
        reader.open(f"{coder_link(RUN, CODER)}/1030")  # of the second shard of rows
        latents, contexts = made[RUN].tables[CODER]
        row, own = (
            rows(latents, 1030)[0],
            sorted(rows(contexts, 1030), key=lambda row: (row["range"] >= 0, -row["range"], row["rank"])),
        )
        seen = [float(text) for text in reader.page.locator(".context .activation").all_inner_texts()]
        assert seen == pytest.approx([each["activation"] for each in own], rel=0.005)
        titles = reader.page.locator(".contexts h3").all_inner_texts()
        assert [title.split(":")[0] for title in titles] == [
            "Strongest",
            *(f"{10 * i} % to {10 * i + 10} % of the largest" for i in range(9, -1, -1)),
        ]
        low, high = map(float, titles[1].split(": ")[1].split(" to "))
        assert (low, high) == pytest.approx((0.9 * row["max_activation"], row["max_activation"]), rel=0.005)
        tokens = reader.page.locator(".context").first.locator(".token")
        assert tokens.count() == len(own[0]["tokens"])
        fires = [i for i, activation in enumerate(own[0]["activations"]) if activation]
        assert tokens.evaluate_all("all => all.flatMap((t, i) => t.classList.contains('fires') ? [i] : [])") == fires
        logits = reader.page.locator("aside section").first.locator(".value").all_inner_texts()
        assert [float(text) for text in logits] == pytest.approx(row["raised_logits"], rel=0.005)
        assert reader.page.locator(".histogram rect").count() == np.count_nonzero(row["histogram"])
        assert reader.page.locator(".place").first.inner_text() == f"document {own[0]['document']}, position {own[0]['position']}"

    def test_pointer_and_keyboard_tell_of_a_token(self, reader: Reader, made: dict[str, MadeUp]) -> None:
        reader.open(f"{coder_link(RUN, CODER)}/2")
        best = rows(made[RUN].tables[CODER][1], 2)[0]
        at = best["position"] - best["start"]

        def told() -> dict[str, str]:
            reader.page.wait_for_selector("#tip", state="visible")
            return dict(row.split("\t") for row in reader.page.locator("#tip").inner_text().splitlines())

        reader.page.locator(".context .peak").first.hover()
        assert told() | {"token": ""} == {
            "token": "", "id": str(best["tokens"][at]), "position": str(best["position"]),
            "activation": f"{best['activation']:.3g} (100 % of the largest)",
        }  # fmt: skip
        reader.page.mouse.move(2, 2)
        reader.page.wait_for_selector("#tip", state="hidden")
        reader.page.locator(".context .peak").first.focus()
        reader.page.keyboard.press("ArrowLeft")
        assert told()["id"] == str(best["tokens"][at - 1])
        reader.page.keyboard.press("Escape")
        reader.page.wait_for_selector("#tip", state="hidden")
        assert reader.page.locator("article").count() == 1

    def test_line_breaks_are_shown_when_asked_for(self, reader: Reader) -> None:
        reader.open(f"{coder_link(RUN, CODER)}/0")  # its token is the newline
        line = reader.page.locator(".context .line").first
        single = line.bounding_box()["height"]
        assert "↵" in line.inner_text()
        reader.page.get_by_role("button", name="as text").click()
        assert line.bounding_box()["height"] > 1.8 * single
        reader.page.get_by_role("button", name="one line each").click()
        assert line.bounding_box()["height"] == single

    def test_links_lead_to_neighbours_and_back(self, reader: Reader, made: dict[str, MadeUp]) -> None:
        reader.open(coder_link(RUN, CODER))
        latents = made[RUN].tables[CODER][0]
        reader.page.mouse.wheel(0, 3000)
        reader.page.wait_for_function("() => scrollY > 2000")
        reader.page.wait_for_timeout(100)
        place = reader.page.evaluate("scrollY")
        latent = next(latent for latent in reader.latents()[12:])
        reader.page.locator(".row .latent", has_text=str(latent)).first.locator("..").locator(".density").click()
        reader.wait_for_title(f"latent {latent},")
        row = rows(latents, latent)[0]
        near = reader.page.locator("section", has=reader.page.get_by_role("heading", name="Nearest")).locator("li a").first
        assert near.get_attribute("href").endswith(f"/{row['nearest'][0]}")
        near.click()
        reader.wait_for_title(f"latent {row['nearest'][0]},")
        reader.page.go_back()
        reader.wait_for_title(f"latent {latent},")
        reader.page.go_back()
        reader.wait_for_title(CODER)
        assert reader.page.evaluate("scrollY") == place
        assert reader.page.evaluate("document.activeElement.textContent") == f"{latent:,}"
        reader.page.go_forward()
        reader.wait_for_title(f"latent {latent},")
        reader.page.get_by_role("link", name="of seed1").click()
        reader.wait_for_title(f"latent {row['other_latent']}, {TWIN}")

    def test_keys(self, reader: Reader) -> None:
        reader.open(coder_link(RUN, CODER))
        press = reader.page.keyboard.press
        press("ArrowDown") if reader.page.locator("a:focus").count() else reader.page.locator(".row a").first.focus()
        press("ArrowDown")
        press("ArrowDown")
        press("Enter")
        reader.wait_for_title("latent 2,")
        press("j")
        reader.wait_for_title("latent 3,")
        for latent in (4, 5, 7):  # 6 never fires: the table does not show it
            press("j")
            reader.wait_for_title(f"latent {latent},")
        press("k")
        reader.wait_for_title("latent 5,")
        press("Escape")
        reader.wait_for_title(CODER)
        assert reader.page.evaluate("document.activeElement.textContent") == "5"
        press("Enter")
        reader.wait_for_title("latent 5,")
        press("/")
        reader.page.wait_for_function("() => document.activeElement?.id === 'search'")
        reader.page.keyboard.type("/jk")
        assert reader.page.locator("#search").input_value() == "/jk"
        assert {"/", "j", "k", "Esc"} <= set(reader.page.locator("footer kbd").all_inner_texts())

    def test_tokens_are_text_and_no_markup(self, reader: Reader, made: dict[str, MadeUp]) -> None:
        contexts = made[RUN].tables[CODER][1].to_pylist()
        visible = {"\u2028": "U+2028", "\u202eright": "U+202Eright", "": "∅", "y" * 5000: "y" * 80 + "…"}
        reader.open(coder_link(RUN, CODER))
        for odd in ODD:
            row = next(row for row in contexts if VOCABULARY[row["tokens"][row["position"] - row["start"]]] == odd)
            reader.go(f"{coder_link(RUN, CODER)}/{row['latent']}")
            reader.wait_for_title(f"latent {row['latent']},")
            assert reader.page.locator(".context .peak").first.inner_text() == visible.get(odd, odd)
            assert reader.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert reader.page.locator("main script, main img").count() == 0

    def test_what_is_not_there_is_said(self, reader: Reader) -> None:
        for link, said in (
            (f"{coder_link(RUN, CODER)}/1500", "latent 1500: not among the 1,500 latents of layers.2/seed0 in this page"),
            (f"{coder_link(RUN, CODER)}/x", "latent x: not among"),
            (coder_link(RUN, "layers.9"), f"{RUN}, layers.9: not in this page; choose a coder above"),
            ("#/%", "the address is cut off or misspelt"),
        ):
            reader.open(coder_link(RUN, CODER))
            reader.page.evaluate("link => { location.hash = link; }", link)
            reader.page.wait_for_selector("#fault:not([hidden])")
            assert reader.page.get_by_role("alert").inner_text().startswith(said)
            assert reader.page.locator(".row, article").count() == 0
        reader.page.select_option("#chooser", index=0)
        reader.wait_for_title(CODER)
        assert reader.page.get_by_role("alert").count() == 0
        reader.open(f"{coder_link(RUN, CODER)}/6")
        assert "It fires on none of these tokens." in reader.page.locator("article").inner_text()
        reader.open(f"{coder_link(OTHER, 'layers.1.mlp')}/1")
        assert "does not write into the residual stream" in reader.page.locator("aside").inner_text()

    def test_it_fits_a_phone(self, reader: Reader) -> None:
        reader.page.set_viewport_size({"width": 390, "height": 800})
        for link in (coder_link(RUN, CODER), f"{coder_link(RUN, CODER)}/1"):
            reader.open(link)
            boxes = "[...document.querySelectorAll('main *')].filter(e => !e.closest('.line, .excerpt, .raised'))"
            assert reader.page.evaluate(f"{boxes}.filter(e => e.getBoundingClientRect().right > 391).map(e => e.outerHTML)") == []
            assert reader.page.evaluate("document.documentElement.scrollWidth") == 390
        reader.page.get_by_role("button", name="as text").click()
        assert reader.page.evaluate("document.documentElement.scrollWidth") == 390
        reader.page.set_viewport_size({"width": 1300, "height": 900})

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_stands_out(self, reader: Reader, scheme: str) -> None:
        reader.page.emulate_media(color_scheme=scheme)
        for link in (coder_link(RUN, CODER), f"{coder_link(RUN, CODER)}/1"):
            reader.open(link)
            contrasts = reader.page.evaluate(CONTRASTS)
            assert len(contrasts) > 100
            assert min(contrasts) >= 4.5
        ground = reader.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
