"""The flags of the command line, and which verb takes which."""

from absl import flags
from ml_collections import config_flags

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "Config file of a run.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything that a run writes.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the data set: config.data.data_dir.")
WEIGHTS = flags.DEFINE_string("weights", None, "Backbone weights, .npz: config.model.weights.")
MODEL = flags.DEFINE_string("model", None, "A .keras file of your own.")
OUT = flags.DEFINE_string("out", None, "File to write.")
JSON = flags.DEFINE_boolean("json", False, "inspect, explain: print all as JSON, not as tables.")
TFLITE = flags.DEFINE_string("tflite", None, "explain, predict: a .tflite file.")
OVERLAY = flags.DEFINE_string("overlay", None, "explain: also write node data for Model Explorer.")
IMAGE = flags.DEFINE_string("image", None, "predict: an image, or a folder of images.")
OPACITY = flags.DEFINE_float("opacity", 0.5, "predict: of the colours over the image, in [0, 1].")
PLAN = flags.DEFINE_string("plan", None, "prune: also write the plan as JSON.")
MACS = flags.DEFINE_string("macs", None, "prune: MACs that stay: 0.5, or a whole number.")
PARAMS = flags.DEFINE_string("params", None, "prune: parameters that stay, likewise.")
PADDED_MACS = flags.DEFINE_string(
    "padded_macs", None, "prune: MACs that stay, widths rounded up to 4 as GPUs compute, likewise."
)
CRITERION = flags.DEFINE_string("criterion", "l1", "prune: l1, l2, bn_gamma, fpgm or random.")
RANKING = flags.DEFINE_enum(
    "ranking", "global", ["global", "layer", "scope"], "prune: what competes: global, layer, scope."
)
SCOPE = flags.DEFINE_multi_string(
    "scope", [], "prune: name=regular expression for layer names, with --ranking=scope. May repeat."
)
ALIGN = flags.DEFINE_integer("align", 1, "prune: widths become multiples of this.", lower_bound=1)
FLOOR = flags.DEFINE_float("floor", 0.1, "prune: fraction of its channels every layer keeps.")
EXCLUDE = flags.DEFINE_multi_string(
    "exclude", [], "prune: regular expression for names of layers to keep whole. May repeat."
)
SEED = flags.DEFINE_integer("seed", 0, "prune: seed of the random criterion.", lower_bound=0)
FOLD = flags.DEFINE_enum(
    "fold_constants",
    "none",
    ["none", "exact", "beta"],
    "prune: constants of dropped channels stay in what reads them: none, exact (gamma 0), beta.",
)
PRECISION = flags.DEFINE_enum(
    "precision",
    "float32",
    ["float32", "float16", "dynamic", "int8", "int8x16", "mixed"],
    "export: float32, float16, dynamic, int8, int8x16 (int16 activations), mixed (int8, but for the"
    " layers that it hurts most).",
)
QUANTIZER = flags.DEFINE_enum(
    "quantizer",
    None,
    ["converter", "ai_edge"],
    "export: what sets the integers of int8 and int8x16: TensorFlow's converter or"
    " ai-edge-quantizer.",
)
MAX_LOSS = flags.DEFINE_float(
    "max_loss",
    0.01,
    "export, with --precision=mixed: share of the pixels of --images that may change their class.",
    lower_bound=0.0,
)
TAIL = flags.DEFINE_enum(
    "tail",
    "upsampled",
    ["logits", "upsampled", "argmax"],
    "export: what the file answers: logits, upsampled, argmax.",
)
GROUPED = flags.DEFINE_enum(
    "grouped",
    "auto",
    ["auto", "grouped", "split"],
    "export: grouped convolutions: auto (what GPUs compute rightly), grouped (one op), split.",
)
IMAGES = flags.DEFINE_string("images", None, "export: folder of images, for int8 and the check.")
IMAGE_SIZE = flags.DEFINE_string(
    "image_size", None, "export: height,width in pixels, for a network that takes any size."
)
SCALE = flags.DEFINE_float("scale", 1.0, "export: the network takes image * scale + offset.")
OFFSET = flags.DEFINE_float("offset", 0.0, "export: see --scale.")
REQUIRE_GPU = flags.DEFINE_boolean(
    "require_gpu",
    False,
    "export: write only what the GPU delegate runs, whole and rightly on --images (without a GPU"
    " see tools/software_gpu.sh).",
)
GPU_TIMEOUT = flags.DEFINE_float(
    "gpu_timeout", 900.0, "export: seconds that --require_gpu waits for it.", lower_bound=0.0
)
CLASSES = flags.DEFINE_string(
    "classes", None, "export: the data set's classes.json, for the JSON beside the file."
)
THREADS = flags.DEFINE_integer("threads", 1, "bench, predict: CPU threads.", lower_bound=1)

# The flags that a verb takes without a config; any other would be passed over in silence.
OWN_FLAGS = {
    "inspect": (MODEL, OUT, JSON),
    "prune": (MODEL, OUT, PLAN, MACS, PARAMS, PADDED_MACS, CRITERION, RANKING, SCOPE)
    + (ALIGN, FLOOR, EXCLUDE, SEED, FOLD),
    "export": (MODEL, OUT, PRECISION, QUANTIZER, MAX_LOSS, TAIL, GROUPED, IMAGES)
    + (IMAGE_SIZE, SCALE, OFFSET, CLASSES, REQUIRE_GPU, GPU_TIMEOUT),
    "bench": (OUT, THREADS),
    "explain": (TFLITE, JSON, OVERLAY),
    "predict": (TFLITE, IMAGE, OUT, OPACITY, THREADS),
}
CONFIG_FLAGS = (WORKDIR, DATA_DIR, WEIGHTS)
