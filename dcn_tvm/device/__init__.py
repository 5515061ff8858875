"""Everything that only a device can tell, in one resumable command: `dcn-tvm gpu`.

`plan` runs the steps, each in a process of its own (`child`), and `journal` keeps what they found.
What a step does stands in the module of its name: `machine`, `correctness`, `behaviour` with
`sanitizer`, `benchmark` by the rows of `rows` and the clocks of `timing`, and `tune`, while
`precompile` works ahead of them. `goals` and `report` make tables of it. `carry` packs what a
machine without network and without the compiler needs, `prebuilt` the kernels; `unpack` is the
script that goes along.
"""
