"""Errors of remote file systems, as messages of one line."""

import pytest

from jaxdepth.runtime.errors import MachineError, UserError
from jaxdepth.runtime.storage import storage_errors


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (FileNotFoundError("b/x"), UserError, "no such file, folder or bucket"),
        (PermissionError("denied"), UserError, "access denied"),
        (ImportError("gcsfs"), UserError, r"gs://b can't be opened: gcsfs"),
        (ConnectionError("a\nb"), MachineError, r"failed \(ConnectionError: a b\)"),
        (UserError("as it was"), UserError, "^as it was$"),
    ],
)
def test_exceptions_become_one_line(error, kind, words):
    with pytest.raises(kind, match=words) as raised, storage_errors("gs://b"):
        raise error
    assert "\n" not in str(raised.value)
