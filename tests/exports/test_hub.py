"""What the Hugging Face Hub refuses and takes, by the real client against a hub on this machine.

The client reads the hub's address while it is imported: processes of their own import it, and their tests are slow."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sparsify import SparseCoder

from helpers.fake_hub import TOKEN, FakeHub, fake_hub
from helpers.forked import Server
from helpers.sweeps import SHORT
from sae_transcoder.api import Run, load_config, train
from sae_transcoder.config import Config, ConfigError
from sae_transcoder.exports.hub import heldout_lines
from sae_transcoder.language_model.loading import DEMO, outline
from sae_transcoder.run_store.eval_file import CoderMetrics, Evaluation
from sae_transcoder.run_store.scores import with_scores

Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeHub, Server]]:
    """A hub, and a server of processes that take it for the hub."""
    folder = tmp_path_factory.mktemp("hub")
    with fake_hub(folder / "models") as hub:
        server = Server(hub.environment(folder / "home"))
        yield hub, server
        server.close()


@pytest.fixture
def hub(server: tuple[FakeHub, Server]) -> FakeHub:
    """The hub, without models."""
    shutil.rmtree(server[0].models, ignore_errors=True)
    server[0].requests.clear()
    return server[0]


@pytest.fixture
def call(server: tuple[FakeHub, Server], tmp_path: Path) -> Call:
    """Runs a command, with a login where a token is given."""

    def called(module: str, *arguments: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        login = {"HF_TOKEN": token} if token else {}
        done = server[1].run(["-m", f"sae_transcoder.{module}", *arguments], dict(os.environ) | login, tmp_path)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return called


@pytest.fixture(scope="module")
def run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    return train(load_config(*SHORT, "k=4", "max_steps=4", f"save_dir={folder}", f"cache_dir={cache}"))


@pytest.mark.slow
def test_pushed_coders_are_at_the_hub_with_their_card_and_sparsify_loads_them(hub: FakeHub, run: Run, call: Call) -> None:
    done = call("export", str(run.directory), "to=hub", "push=me/my-saes", token=TOKEN)
    assert done.returncode == 0, done.stderr
    assert "me/my-saes" in done.stdout
    pushed = hub.models / "me" / "my-saes"
    assert {"README.md", "eval.json", "training_config.yaml", "layers.2"} <= {path.name for path in pushed.iterdir()}
    assert 'SparseCoder.load_from_hub("me/my-saes", "layers.2")' in (pushed / "README.md").read_text()
    loaded = SparseCoder.load_from_disk(pushed / "layers.2")
    assert loaded.W_dec.equal(run.coders["layers.2"].W_dec)


@pytest.mark.slow
def test_a_push_without_a_login_is_refused_with_the_fix(hub: FakeHub, run: Run, call: Call) -> None:
    done = call("export", str(run.directory), "to=hub", "push=me/my-saes")
    assert done.returncode == 1
    assert "push=me/my-saes: cannot be uploaded" in done.stderr
    assert "hf auth login" in done.stderr
    assert not hub.models.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "token", "parts"),
    [
        ("gated/model", None, ["accept its conditions on", "/gated/model", "hf auth login", "HF_TOKEN"]),
        ("forbidden/model", TOKEN, ["accept its conditions on", "/forbidden/model", "with the account that is logged in"]),
        ("forbidden/model", "hf_stale", ["does not know the token", "hf auth login", "HF_TOKEN"]),
        ("missing/model", None, ["no such model", "or it is private", "hf auth login"]),
        ("missing/model", TOKEN, ["no such model", "the login may not read it"]),
    ],
)
def test_a_model_that_the_hub_does_not_give_is_named_with_what_to_do(
    hub: FakeHub, call: Call, tmp_path: Path, name: str, token: str | None, parts: list[str]
) -> None:
    settings = ["model_type=sae", f"model_name={name}", "dataset=demo", f"save_dir={tmp_path}/out"]
    done = call("train", *settings, token=token)
    assert done.returncode == 1
    assert all(part in done.stderr for part in [f"model_name={name}", *parts]), done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_model_of_the_hub_is_read_at_its_revision_and_others_are_named(hub: FakeHub, call: Call, tmp_path: Path) -> None:
    shutil.copytree(DEMO, hub.models / "open" / "model")
    settings = [
        "model_type=sae",
        "model_name=open/model",
        "dataset=demo",
        "layers=[2]",
        f"save_dir={tmp_path}/out",
        f"cache_dir={tmp_path}/cache",
        "dry_run=true",
    ]
    done = call("train", *settings)
    assert done.returncode == 0, done.stderr
    assert "GET /open/model/resolve/main/config.json" in hub.requests
    done = call("train", *settings, "revision=nowhere")
    assert done.returncode == 1
    assert "model_name=open/model, revision=nowhere: its config cannot be loaded" in done.stderr
    assert "no such branch, tag or commit" in done.stderr


def test_a_folder_that_holds_an_adapter_alone_is_refused_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="merge it into its model"):
        outline(Config(model_name=str(tmp_path)))


def test_the_card_has_a_dash_and_the_reason_for_a_score_that_says_nothing() -> None:
    losses = {"ce_loss_without_sae": 3.0, "ce_loss_with_sae": 3.1, "ce_loss_with_ablation": 2.5, "ce_loss_ablation_std_error": 0.1}
    bad = CoderMetrics("layers.1.mlp", "layers.1.mlp", None, 32, 1024, 8, with_scores(losses | {"fvu": 2.5, "frac_alive": 0.605}))
    good = CoderMetrics("layers.2.mlp", "layers.2.mlp", None, 32, 1024, 8, {"fvu": 0.25, "ce_loss_score": 0.75, "frac_alive": 1.0})
    assert heldout_lines(Evaluation({}, [bad, good]))[2:] == [
        "| coder | latents | k | FVU | CE loss score | CE loss | never fired |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| layers.1.mlp | 1,024 | 8 | 2.5000 | - | 3.1000 | 39.5 % |",
        "| layers.2.mlp | 1,024 | 8 | 0.2500 | 0.7500 |  | 0.0 % |",
        "",
        "layers.1.mlp has no CE loss score: with zeros in the module's place the CE falls by 0.5 ± 0.1 nats.",
        "",
        "The FVU of layers.1.mlp is above 1: it is worse than the mean output at every token.",
        "",
    ]
