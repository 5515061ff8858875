"""The schedules under one import name, `dcn_tvm.schedules.<family>.<op>`, wherever they stand.

Setting `__path__` makes this module a package whose modules are files of the tree's `schedules/`
folder or of its copy in a wheel; importing it imports no schedule.
"""

from dcn_tvm import _resources

__path__ = [str(_resources.root("schedules"))]
