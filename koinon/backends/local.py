"""The local engine by name: `ko.backends.local.explain(computation, *arguments)` tells how it runs a call, and why."""

from koinon.backends._explain import Explanation
from koinon.backends._local import LocalBackend, explain

__all__ = ["Explanation", "LocalBackend", "explain"]
