"""Request bodies in, prompts out: what is asked, as tokens or as the next best thing.

`RequestReader` reads a body once; `PromptResolver` turns it into a `Prompt` with a tokenizer of its own, with the
worker's, or with none. No routing and no sockets here.
"""

from kvrouter.service.prompts.body import InferenceBody
from kvrouter.service.prompts.local_tokens import TextLimits
from kvrouter.service.prompts.model_files import model_paths
from kvrouter.service.prompts.prefix_cache import PrefixCache
from kvrouter.service.prompts.reader import RequestReader
from kvrouter.service.prompts.resolver import PromptMode, PromptResolver
from kvrouter.service.prompts.worker_tokenizer import AskWorker, WorkerLimits

__all__ = [
    "AskWorker",
    "InferenceBody",
    "PrefixCache",
    "PromptMode",
    "PromptResolver",
    "RequestReader",
    "TextLimits",
    "WorkerLimits",
    "model_paths",
]
