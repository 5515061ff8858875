"""Tuning: search the choices of schedules on this or other machines, and keep what won.

`session` tunes tasks one after another. For each, `trial` lets `search` propose points, which
`crew` compiles and measures in child processes (`worker`, `call`), and decides what becomes a
record. Where kernels run and are timed is a `bench`: this machine's processor, a device of it
(`cuda`), or other machines (`remote`); `machine` names them. `audit` looks at records again.
"""

import importlib.util

_PACKAGES = ("cloudpickle", "psutil", "tornado", "xgboost")  # of the extra `tune`
_missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
if _missing:  # else TVM would name the first of them that it happens to import
    raise ImportError(f"tuning needs {', '.join(_missing)}: pip install 'dcn_tvm[tune]'")
