"""What runs computations: the reference, which is the semantics, and the local engine, which is fast.

>>> import koinon as ko
>>> with ko.backends.use("reference"):
...     ko.backends.current()
ReferenceBackend(default_num_clients=0)
"""

from koinon.backends import local
from koinon.backends._local import LocalBackend
from koinon.backends._reference import ReferenceBackend
from koinon.backends._selection import current, set_default, use

__all__ = ["LocalBackend", "ReferenceBackend", "current", "local", "set_default", "use"]
