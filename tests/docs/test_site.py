"""Links that GitHub reads become links of the site, and fields lead to their meaning."""

import pytest

pytest.importorskip("mkdocs", reason="the site is made with mkdocs-material, of the extra docs")

import site_links


@pytest.mark.parametrize(
    ("link", "path", "uri", "in_site"),
    [
        ("[a](coders.md#auxk)", "docs/training.md", "training.md", "[a](coders.md#auxk)"),
        ("[a](../benchmarks/README.md#results)", "docs/sweeps.md", "sweeps.md", "[a](benchmarks/README.md#results)"),
        ("[a](../docs/gpu.md)", "benchmarks/README.md", "benchmarks/README.md", "[a](../gpu.md)"),
        ("[a](../README.md)", "docs/first_run.md", "first_run.md", "[a](index.md)"),
        ("[a](docs/coders.md)", "README.md", "index.md", "[a](coders.md)"),
        ('<img src="docs/latent.png">', "README.md", "index.md", '<img src="latent.png">'),
        ("[a](nowhere.md) [b](https://arxiv.org)", "docs/gpu.md", "gpu.md", "[a](nowhere.md) [b](https://arxiv.org)"),
        ("```\n[a](../README.md)\n```", "docs/first_run.md", "first_run.md", "```\n[a](../README.md)\n```"),
    ],
)
def test_a_link_leads_to_the_same_file_in_the_site(link: str, path: str, uri: str, in_site: str) -> None:
    assert site_links.relinked(link, path, uri) == in_site


def test_a_field_is_linked_where_it_is_named_first_outside_code_headings_and_links() -> None:
    text = "# `k`\n\n```bash\nsae-train `k`\n```\n[`lr`](x.md) sets `k=16`, then `k`; `kk` is none.\n"
    linked = "# `k`\n\n```bash\nsae-train `k`\n```\n[`lr`](x.md) sets [`k=16`](fields.md#k), then `k`; `kk` is none.\n"
    assert site_links.with_field_links(text) == linked
