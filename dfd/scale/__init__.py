"""Very many images, on all cores, GPUs or machines, through Ray Data (an extra): `dfd.scale.score`.

May import inference, data, core, config, degrade and models. Nothing is exported here, for Ray may not be installed.
"""
