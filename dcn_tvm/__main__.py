"""The entry of the command line, `dcn-tvm` or `python -m dcn_tvm`; its commands are in `cli`."""

from dcn_tvm.cli import app

__all__ = ["app"]

if __name__ == "__main__":
    app(prog_name="dcn-tvm")
