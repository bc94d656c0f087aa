"""The stages of a run, from images to a report; each resumable, each leaving its files."""

from tfseg_prune.pipeline.config import default_config
from tfseg_prune.pipeline.run import STAGES, run

__all__ = ["STAGES", "default_config", "run"]
