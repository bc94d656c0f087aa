import collections
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from absl import flags
from PIL import Image

import tfseg_prune as tsp
from tests.pipeline import tiny
from tfseg_prune import main
from tfseg_prune.graph import PruningPlan
from tfseg_prune.main.command import VERBS
from tfseg_prune.pipeline import files

# ml_collections loads configs so.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

Answer = collections.namedtuple("Answer", "status out err")
DEFINED = set(flags.FLAGS)


@pytest.fixture
def cli(monkeypatch, capfd, tmp_path):
    """`cli(*arguments) -> Answer`, in `tmp_path`, as a new process would."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        capfd.readouterr()
        argv = ["tfseg-prune", *map(str, arguments)]
        # ml_collections reads overrides from sys.argv, defines flags for them and keeps the module.
        monkeypatch.setattr(sys, "argv", argv)
        sys.modules.pop("config_config", None)
        for name in set(flags.FLAGS) - DEFINED:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
        for name in flags.FLAGS:
            flags.FLAGS[name].unparse()
        status = main.run(argv)
        return Answer(status, *capfd.readouterr())

    return run


@pytest.fixture
def refused(cli, tmp_path):
    """`refused(*arguments)`: the message of a command that must fail and leave all as it was."""

    def run(*arguments, may_make=()):
        before = _contents(tmp_path, but=may_make)
        answer = cli(*arguments)
        assert answer.status == 2, answer
        # The command mutes TensorFlow's notes before its import, which came earlier here.
        message = re.sub("(?m)^[IW]0000 .*\n", "", answer.err)
        assert message.startswith("tfseg-prune: ") and message.count("tfseg-prune: ") == 1
        assert "Traceback" not in message and "Error whilst" not in message
        assert len(message.splitlines()) <= 3
        assert _contents(tmp_path, but=may_make) == before
        return message

    return run


def _contents(folder, *, but):
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return {name: content for name, content in found.items() if not name.startswith(tuple(but))}


@pytest.fixture
def model(tmp_path):
    keras.utils.set_random_seed(0)
    images = keras.Input((32, 48, 3))
    x = keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="first")(images)
    x = keras.layers.Conv2D(24, 3, padding="same", activation="relu", name="second")(x)
    built = keras.Model(images, keras.layers.Conv2D(4, 1, name="logits")(x))
    built.save(tmp_path / "mine.keras")
    return built


@pytest.fixture
def config(tmp_path, network):
    """A config file for the tiny run."""
    (tmp_path / "tiny.py").write_text(
        "from tests.pipeline import tiny\n"
        f"def get_config():\n    return tiny.config({str(network)!r})\n"
    )
    return "--config=tiny.py"


@pytest.fixture
def own_data(tmp_path):
    """A folder of images and labels, a config for it, and the network that fits."""
    generator = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for kind in ("images", "labels"):
            (tmp_path / "data" / split / kind).mkdir(parents=True)
        for name in "ab":
            image = generator.integers(0, 255, (32, 48, 3), dtype=np.uint8)
            label = generator.integers(0, 2, (32, 48), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "data" / split / "images" / f"{name}.png")
            Image.fromarray(label).save(tmp_path / "data" / split / "labels" / f"{name}.png")
    classes = [{"id": i, "name": name, "color": [i, i, i]} for i, name in enumerate("xy")]
    (tmp_path / "data" / "classes.json").write_text(json.dumps({"classes": classes}))
    network = tiny.save_network(tmp_path / "two.keras", classes=2)
    (tmp_path / "own.py").write_text(
        "from tests.pipeline import tiny\n"
        "def get_config():\n"
        f"    config = tiny.config({str(network)!r})\n"
        "    for split in ('train', 'val', 'test'):\n"
        "        del config.data[split].count, config.data[split].size\n"
        "    config.data.name = 'folder'\n"
        "    config.train.batch_size = 2\n"
        "    return config\n"
    )
    return tmp_path / "data"


def test_help_is_quick_and_imports_no_framework():
    code = (
        "import sys; sys.argv = ['tfseg-prune', '--help']\n"
        "from tfseg_prune import main; status = main.run(sys.argv)\n"
        "assert not {'keras', 'tensorflow', 'jax'} & set(sys.modules), 'too much'\n"
        "sys.exit(status)"
    )
    best = np.inf
    for _ in range(3):
        start = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        best = min(best, time.monotonic() - start)
        assert done.returncode == 0 and done.stderr == ""
    for word in (*VERBS, "--workdir", "--macs", "--precision"):
        assert word in done.stdout
    assert best < 1


@pytest.mark.slow
def test_ctrl_c_in_training_says_how_to_go_on_and_ends_the_process(config, tmp_path):
    with open(tmp_path / "tiny.py", "a") as file:
        file.write(
            "import time\n"
            "from tfseg_prune.data import Batches\n"
            "get = Batches.__getitem__\n"
            "def slow(self, index):\n"
            "    time.sleep(1)\n"
            "    return get(self, index)\n"
            "Batches.__getitem__ = slow\n"
        )
    process = subprocess.Popen(
        [sys.executable, "-m", "tfseg_prune", "train", config, "--workdir=run"],
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(tsp.__file__).parents[1])},
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 120
        while not list(tmp_path.glob("run/checkpoints/train-*/epoch-0001")):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        time.sleep(0.5)  # a batch is being read
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Stopped in epoch 2 of 3" in said and "Run the same command again" in said


def test_help_into_a_pipe_that_closes_is_quiet():
    command = f"{sys.executable} -m tfseg_prune --help | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.parametrize("kind", ["functional", "sequential"])
def test_a_model_of_ones_own_is_pruned_without_a_config(cli, model, tmp_path, kind):
    if kind == "sequential":
        model = keras.Sequential([keras.Input((32, 48, 3)), *model.layers[1:]])
        model.save(tmp_path / "mine.keras")
    answer = cli(
        *("prune", "--model=mine.keras", "--macs=0.5", "--criterion=l1", "--out=small.keras"),
        "--plan=plan.json",
    )
    assert answer.status == 0, answer.err
    small = files.load_model(tmp_path / "small.keras")
    before, after = tsp.cost(model), tsp.cost(small)
    assert 0.45 < after.macs / before.macs <= 0.5
    for text in ("first", "second", "logits", f"{before.macs:,}", f"{after.macs:,}", "small.keras"):
        assert text in answer.out
    plan = PruningPlan.load(tmp_path / "plan.json")
    for name in ("first", "second"):
        assert f"{plan.widths[name]} → {len(plan.keep[name])}" in answer.out
    again = tsp.shrink(files.load_model(tmp_path / "mine.keras"), plan)
    images = np.random.default_rng(0).uniform(0, 255, (1, 32, 48, 3)).astype("float32")
    np.testing.assert_allclose(again(images), small(images), rtol=1e-5, atol=1e-4)


def test_dropped_channels_may_leave_their_constants(cli, tmp_path):
    i = keras.Input((32, 48, 3))
    x = keras.layers.BatchNormalization(beta_initializer="ones")(keras.layers.Conv2D(8, 3)(i))
    model = keras.Model(i, keras.layers.Conv2D(4, 1, name="logits")(x))
    model.save(tmp_path / "mine.keras")
    biases = {}
    for mode in ("none", "exact", "beta"):
        answer = cli(
            *("prune", "--model=mine.keras", "--macs=0.5", "--out=small.keras"),
            f"--fold_constants={mode}",
        )
        assert answer.status == 0, answer.err
        small = files.load_model(tmp_path / "small.keras")
        biases[mode] = np.asarray(small.get_layer("logits").bias)
    np.testing.assert_array_equal(biases["none"], biases["exact"])  # no gamma is 0
    assert np.abs(biases["beta"] - biases["none"]).min() > 0


def test_absolute_budgets_may_be_written_with_an_exponent(cli, model, tmp_path):
    macs = tsp.cost(model).macs
    reached = []
    for text in (str(macs // 2), f"{macs // 2:.0f}.0", f"{macs // 2 / 1e6:.6f}e6"):
        answer = cli("prune", "--model=mine.keras", f"--macs={text}", "--out=small.keras")
        assert answer.status == 0, answer.err
        reached.append(tsp.cost(files.load_model(tmp_path / "small.keras")).macs)
    assert len(set(reached)) == 1 and reached[0] <= macs // 2


def test_export_and_bench_on_files_of_ones_own(cli, model, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    answer = cli("export", "--model=mine.keras", "--out=a.tflite", "--images=images")
    assert answer.status == 0 and "100.000% on 3 images" in answer.out
    open_size = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(2, 1)])
    open_size.save(tmp_path / "open.keras")
    answer = cli("export", "--model=open.keras", "--out=b.tflite", "--images=images")
    assert answer.status == 2 and "--image_size=height,width" in answer.err
    sized = ("export", "--model=open.keras", "--out=b.tflite", "--images=images")
    answer = cli(*sized, "--image_size=20,24")
    assert answer.status == 0 and "100.000% on 3 images" in answer.out, answer.err
    answer = cli("export", "--model=mine.keras", "--out=b.tflite", "--precision=float16")
    assert answer.status == 0 and "not compared" in answer.out
    answer = cli("bench", "a.tflite", "b.tflite", "--out=bench.json", "--threads=1")
    assert answer.status == 0 and "p50" in answer.out and "ratio" in answer.out
    assert len(json.loads((tmp_path / "bench.json").read_text())["results"]) == 2


def test_files_are_explained_and_used_on_the_command_line(cli, model, own_data, tmp_path):
    (tmp_path / "classes.json").write_text(
        json.dumps({"classes": [{"id": i, "name": f"k{i}", "color": [i, 9, 9]} for i in range(4)]})
    )
    answer = cli("export", "--model=mine.keras", "--out=a.tflite", "--classes=classes.json")
    assert answer.status == 0, answer.err
    answer = cli("explain", "--tflite=a.tflite", "--overlay=nodes.json")
    assert answer.status == 0, answer.err
    for text in ("CONV_2D", "second", f"{tsp.cost(model).macs:,}", "nodes.json"):
        assert text in answer.out
    assert json.loads((tmp_path / "nodes.json").read_text())["results"]
    answer = cli("explain", "--tflite=a.tflite", "--overlay=a.tflite.json")
    assert answer.status == 2 and "describes the model" in answer.err
    answer = cli("explain", "--tflite=a.tflite", "--json")
    assert json.loads(answer.out)["padded_macs"] == tsp.cost(model).padded_macs
    answer = cli(
        "predict",
        "--tflite=a.tflite",
        f"--image={own_data}/val/images/a.png",
        "--out=overlay.png",
        "--opacity=1",
    )
    assert answer.status == 0 and "overlay.png: k" in answer.out, answer.err
    assert set(np.unique(np.array(Image.open("overlay.png"))[..., 0])) <= {0, 1, 2, 3}
    answer = cli("predict", "--tflite=a.tflite", f"--image={own_data}/val/images", "--out=all")
    assert answer.status == 0 and sorted(os.listdir(tmp_path / "all")) == ["a.png", "b.png"]


def test_a_budget_may_be_in_padded_macs(cli, model, tmp_path):
    answer = cli("prune", "--model=mine.keras", "--padded_macs=0.5", "--out=small.keras")
    assert answer.status == 0, answer.err
    before, after = tsp.cost(model), tsp.cost(files.load_model(tmp_path / "small.keras"))
    assert 0.4 < after.padded_macs / before.padded_macs <= 0.5
    assert f"{before.padded_macs:,}" in answer.out and f"{after.padded_macs:,}" in answer.out


def test_export_tells_what_became_of_grouped_convolutions(cli, tmp_path):
    images = keras.Input((16, 16, 6))
    keras.Model(images, keras.layers.Conv2D(6, 1, groups=2, name="mix")(images)).save("mine.keras")
    for given, told in (((), "split into 2"), (("--grouped=grouped",), "one grouped")):
        answer = cli("export", "--model=mine.keras", "--out=a.tflite", *given)
        assert answer.status == 0, answer.err
        assert f"mix: 3 channels per group: {told} convolution" in answer.out
        warned = "mix: GPU delegates get wrong CONV_2D of 3 channels per group" in answer.out
        assert warned == bool(given), answer.out


def test_inspect_says_what_can_be_pruned_and_what_not(cli, model, tmp_path):
    answer = cli("inspect", "--model=mine.keras")
    assert answer.status == 0, answer.err
    assert os.listdir(tmp_path) == ["mine.keras"]
    macs = tsp.cost(model).macs
    for text in ("first", "second", "logits", "a model output", f"{macs:,}", "100.0 %"):
        assert text in answer.out
    answer = cli("inspect", "--model=mine.keras", "--json", "--out=coupling.html")
    assert answer.status == 0 and json.loads(answer.out)["macs"] == macs
    drawn = (tmp_path / "coupling.html").read_text()
    for name in ("first", "second", "logits"):
        assert drawn.count(f'data-name="{name}"') == 1
    assert "coupling.html" in cli("inspect", "--model=mine.keras", "--out=coupling.html").out


def test_inspect_takes_a_model_of_open_input_size(cli, tmp_path):
    images = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(16, 3, name="first")(images)
    keras.Model(images, keras.layers.Conv2D(4, 1)(x)).save(tmp_path / "open.keras")
    answer = cli("inspect", "--model=open.keras")
    assert answer.status == 0 and "input size is open" in answer.out and "first" in answer.out


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.layer = keras.layers.Dense(2)

    def call(self, x):
        return self.layer(x)


def test_inspect_says_of_a_subclassed_model_what_to_do(refused, tmp_path):
    built = Subclassed()
    built(np.zeros((1, 3)))
    built.save(tmp_path / "sub.keras")
    message = refused("inspect", "--model=sub.keras", "--out=c.html")
    assert re.search("Only functional Keras models.*subclassed.*Remedy", message)


PRUNE = ("prune", "--model=mine.keras", "--out=small.keras")


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((), "one of run, train"),
        (("runn",), "Received: runn"),
        (("run",), "'run' .*--config=FILE.*no --config"),
        (("train", "--workdir=w"), "--config"),
        (("prune",), "--model, --out"),
        (("prune", "--model=mine.keras", "--macs=0.5"), "no --out"),
        ((*PRUNE,), "needs a budget.*--macs"),
        ((*PRUNE, "--maccs=0.5"), "'maccs'. Did you mean: macs"),
        ((*PRUNE, "--macs=0"), r"\(0, 1\].*macs=0"),
        ((*PRUNE, "--macs=-0.5"), r"\(0, 1\].*macs=-0.5"),
        ((*PRUNE, "--macs=1.5"), r"\(0, 1\].*macs=1.5"),
        ((*PRUNE, "--macs=nan"), r"\(0, 1\].*macs=nan"),
        ((*PRUNE, "--macs=inf"), r"\(0, 1\].*macs=inf"),
        ((*PRUNE, "--macs=half"), "fraction.*'half'"),
        ((*PRUNE, "--params=0,5"), "fraction.*'0,5'"),
        ((*PRUNE, "--macs=0.0001"), "can't be reached.*least reachable"),
        ((*PRUNE, "--macs=0.5", "--criterion=l3"), "no criterion 'l3'.*bn_gamma, .*l1, l2, "),
        ((*PRUNE, "--macs=0.5", "--ranking=globe"), "global"),
        ((*PRUNE, "--macs=0.5", "--align=0"), "align"),
        ((*PRUNE, "--macs=0.5", "--floor=2"), "floor"),
        ((*PRUNE, "--macs=0.5", "--seed=-1"), "seed"),
        ((*PRUNE, "--macs=0.5", "--exclude=["), "regular expression"),
        ((*PRUNE, "--macs=0.5", "--exclude=nothing"), "matches no layer.*first"),
        ((*PRUNE, "--macs=0.5", "--scope=head"), "name=regular expression.*'head'"),
        ((*PRUNE, "--macs=0.5", "--ranking=scope", "--scope=a=["), "'a=\\['"),
        ((*PRUNE, "--macs=0.5", "--scope=a=b"), "--ranking=scope"),
        ((*PRUNE, "--macs=0.5", "--plan=nowhere/p.json"), "--plan.*existing folder"),
        ((*PRUNE, "--macs=0.5", "--workdir=w"), "no use for --workdir"),
        ((*PRUNE, "--macs=0.5", "--precision=int8"), "no use for --precision"),
        ((*PRUNE, "--macs=0.5", "extra"), "only flags.*extra"),
        (("prune", "--model=mine.keras", "--macs=0.5", "--out=small.h5"), r"ends in \.keras"),
        (
            ("export", "--model=mine.keras", "--out=a.tflite", "--image_size=20x24"),
            "height,width.*'20x24'",
        ),
        (("prune", "--model=mine.keras", "--macs=0.5", "--out=no/s.keras"), "existing folder"),
        (("prune", "--model=no.keras", "--macs=0.5", "--out=s.keras"), "no.keras', which does not"),
        (("prune", "--model=cut.keras", "--macs=0.5", "--out=s.keras"), "cut.keras.*cut off"),
        (("inspect",), "no --model\n"),
        (("inspect", "--model=no.keras"), "no.keras', which does not exist"),
        (("inspect", "--model=cut.keras"), "cut.keras.*cut off"),
        (("inspect", "--model=mine.keras", "--out=c.svg"), r"ends in \.html"),
        (("inspect", "--model=mine.keras", "--out=no/c.html"), "existing folder"),
        (("inspect", "--model=mine.keras", "--macs=0.5"), "no use for --macs"),
        (("inspect", "--model=mine.keras", "extra"), "only flags.*extra"),
        (("export", "--model=mine.keras", "--out=a.txt"), r"ends in \.tflite"),
        (("export", "--model=mine.keras", "--out=a.tflite", "--precision=int8"), "--images"),
        (("export", "--model=mine.keras", "--out=a.tflite", "--precision=int4"), "int8"),
        (("export", "--model=mine.keras", "--out=a.tflite", "--tail=end"), "argmax"),
        (("export", "--model=mine.keras", "--out=a.tflite", "--images=no"), "'no', which is no"),
        (("export", "--model=cut.keras", "--out=a.tflite"), "cut.keras"),
        (("export", "--model=mine.keras", "--out=a.tflite", "--classes=no.json"), "no.json"),
        (("export", "--model=mine.keras", "--out=a.tflite", "--require_gpu"), "--images=FOLDER"),
        (("explain",), "no --tflite\n"),
        (("explain", "--tflite=no.tflite"), "no.tflite .no such file"),
        (("explain", "--tflite=mine.keras"), "Not a LiteRT model.*mine.keras"),
        (("explain", "--tflite=a.tflite", "--overlay=a.txt"), r"--overlay.*ends in \.json"),
        (("explain", "--model=mine.keras"), "no use for --model"),
        (("predict", "--tflite=a.tflite"), "no --image, --out\n"),
        (("predict", "--tflite=mine.keras", "--image=a.png", "--out=b.png"), "Not a LiteRT model"),
        (("predict", "--tflite=a.tflite", "--image=a.png", "--out=b.jpg"), r"ends in \.png"),
        ((*PRUNE, "--padded_macs=2.5"), r"padded_macs.*\(0, 1\].*2.5"),
        (("bench",), "one or more .tflite files"),
        (("bench", "a.tflite", "--threads=0"), "threads"),
        (("bench", "a.tflite", "--out=no/b.json"), "existing folder"),
        (("bench", "a.tflite", "--workdir=w"), "no use for --workdir"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_message(refused, model, tmp_path, arguments, words):
    (tmp_path / "cut.keras").write_bytes((tmp_path / "mine.keras").read_bytes()[:2000])
    message = refused(*arguments) if arguments else refused("--macs=1")
    assert re.search(words, message, re.DOTALL), message


@pytest.mark.parametrize("path", ["no.tflite", "mine.keras"])
def test_bench_names_a_file_that_it_cannot_time(cli, model, path):
    answer = cli("bench", path)
    assert answer.status == 2 and path in answer.err and "Expected" in answer.err


@pytest.mark.parametrize(
    "text, words",
    [
        ("def get_config(:\n", "wrong.py', line 1: SyntaxError"),
        ("x = 1\n", "without get_config"),
        ("import nowhere\n", "wrong.py', line 1: ModuleNotFoundError.*nowhere"),
        ("def get_config():\n    return 1 / 0\n", "wrong.py', line 2: ZeroDivisionError"),
        ("def get_config():\n    return open('no.txt')\n", "no.txt"),
        ("def get_config():\n    pass\n", "returns the ConfigDict.*Received: None"),
        ("def get_config():\n    return {'name': 'x'}\n", "returns the ConfigDict"),
        ("CONFIG.prunning.budget.macs = 0.5", "line 4: there is no setting 'prunning'.*'pruning'"),
        ("CONFIG.pruning.budgget = 0.5", "line 4: there is no setting 'budgget'.*'budget'"),
        ("CONFIG.train.epochs = 'many'", "line 4: .*epochs.*many"),
        ("CONFIG.train.epochs = -1", "'train.epochs' must be 0 or more"),
        ("CONFIG.pruning.budget.macs = None", "'pruning.budget' must set"),
        ("CONFIG.pruning.budget.macs = 1.5", "macs=1.5"),
    ],
)
def test_a_mistake_in_a_config_is_one_message_that_says_where(refused, tmp_path, text, words):
    if text.startswith("CONFIG"):
        text = (
            "from tfseg_prune.pipeline import default_config\n"
            "def get_config():\n"
            "    config = default_config(); config.pruning.budget.macs = 0.5\n"
            f"    {text.replace('CONFIG', 'config')}\n"
            "    return config\n"
        )
    (tmp_path / "wrong.py").write_text(text)
    message = refused("run", "--config=wrong.py", "--workdir=w", may_make=["__pycache__"])
    assert re.search(words, message, re.DOTALL), message


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((), "--workdir=FOLDER"),
        (("--workdir=w", "extra"), "only flags.*extra"),
        (("--workdir=w", "--wrkdir=w"), "workdir"),
        (("--workdir=w", "--macs=0.4"), "no use for --macs.*--config.room.name"),
        (("--workdir=w", "--config.prunning.budget.macs=0.4"), "'prunning', maybe 'pruning'"),
        (("--workdir=w", "--config.pruning.budget.mac=0.4"), "'mac', maybe 'macs'"),
        (("--workdir=w", "--config.pruning.budget.macs=half"), "macs=half"),
        (("--workdir=w", "--config.train.epochs=1.5"), "epochs=1.5"),
        (("--workdir=w", "--config.pruning.budget.macs=0"), "macs=0.0"),
        (("--workdir=w", "--config.pruning.budget.macs=1.5"), "macs=1.5"),
        (("--workdir=w", "--config.pruning.budget.macs=nan"), "macs=nan"),
        (("--workdir=w", "--config.pruning.budget.macs=inf"), "macs=inf"),
        (("--workdir=w", "--config.pruning.criterion=l3"), "pruning.criterion.*l1.*'l3'"),
        (("--workdir=w", "--config.data.image_size=(3,)"), "image_size"),
        (("--workdir=w", "--weights=w.npz"), "model.weights"),
        (("--workdir=tiny.py",), "working directory can't be used.*tiny.py"),
    ],
)
def test_a_mistake_beside_a_config_is_one_clear_message(refused, config, arguments, words):
    message = refused("run", config, *arguments)
    assert re.search(words, message, re.DOTALL), message


def test_a_config_that_is_not_there_is_named(refused, tmp_path):
    assert "'no.py', which is no file" in refused("run", "--config=no.py", "--workdir=w")
    assert "'', which is no file" in refused("run", "--workdir=w", "--config")
    assert "no file" in refused("run", f"--config={tmp_path}", "--workdir=w")


@pytest.mark.parametrize(
    "verb, wanted",
    [("inspect", "--model=FILE.keras"), ("explain", "--tflite=FILE"), ("predict", "--tflite=FILE")],
)
def test_what_looks_at_a_file_takes_no_config(refused, config, verb, wanted):
    assert wanted in refused(verb, config, may_make=["__pycache__"])


def test_a_stage_before_its_time_is_one_clear_message(refused, config, tmp_path):
    assert "'bench'" in refused("bench", config, "--workdir=w")
    (tmp_path / "w").mkdir()
    made = ["w/.stages"]
    assert "dense_float32.tflite" in refused("bench", config, "--workdir=w", may_make=made)
    assert "base.keras" in refused("prune", config, "--workdir=w", may_make=made)
    assert "'train'" in refused("report", config, "--workdir=w", may_make=made)


def _missing_folder(data):
    return data.parent / "elsewhere", "elsewhere' \\(no such folder"


def _missing_image(data):
    (data / "val" / "images" / "b.png").unlink()
    return data, "b.png"


def _corrupt_image(data):
    path = data / "test" / "images" / "b.png"
    path.write_bytes(path.read_bytes()[:300])
    return data, "test/images/b.png'.*complete image"


def _color_label(data):
    Image.new("RGB", (48, 32)).save(data / "train" / "labels" / "a.png")
    return data, "train/labels/a.png' holds no class ids.*Received: mode 'RGB'"


def _unknown_class(data):
    Image.fromarray(np.full((32, 48), 7, np.uint8)).save(data / "val" / "labels" / "a.png")
    return data, "val/labels/a.png'.*no class.*0 to 1.*7"


def _other_size(data):
    Image.new("L", (24, 32)).save(data / "train" / "labels" / "b.png")
    return data, "train/labels/b.png.*48x32.*Received: 24x32"


def _empty(data):
    for path in data.glob("val/*/*"):
        path.unlink()
    return data, "empty.*'val'"


@pytest.mark.parametrize(
    "damage",
    [
        *(_missing_folder, _missing_image, _corrupt_image, _color_label, _unknown_class),
        *(_other_size, _empty),
    ],
)
def test_data_that_cannot_be_used_are_named_before_training(refused, own_data, damage):
    folder, words = damage(own_data)
    message = refused(
        *("train", "--config=own.py", "--workdir=w", f"--data_dir={folder}"),
        may_make=["w/.stages", "__pycache__"],
    )
    assert re.search(words, message, re.DOTALL), message


def test_a_loss_that_is_not_a_number_stops_and_keeps_a_checkpoint(refused, config, tmp_path):
    message = refused(
        *("train", config, "--workdir=w", "--config.train.learning_rate=1e30"),
        may_make=["w/.stages", "w/checkpoints", "w/metrics.jsonl"],
    )
    assert "diverged" in message and "Lower the learning rate" in message
    (kept,) = (tmp_path / "w" / "checkpoints").glob("train-*/epoch-*")
    assert str(kept.relative_to(tmp_path)) in message
    with np.load(kept / "state.npz") as state:
        assert all(np.isfinite(values).all() for values in state.values())


def test_the_command_is_a_process_like_any_other(model, tmp_path):
    """What tests in one process can't see: what TensorFlow prints, and the exit status."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tfseg_prune", "prune", "--model=mine.keras"),
            *("--macs=0.00001", "--out=small.keras"),
        ],
        cwd=tmp_path,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("tfseg-prune: The budget can't be reached")
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["mine.keras"]
