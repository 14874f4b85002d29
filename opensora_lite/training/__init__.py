"""How the small model was made, to be made again: a frame VAE, then T5 and STDiT2 together, on LiteWorld.

    from opensora_lite.training import train
    train("first_steps", "out")          # a recipe that comes with the package, or a path; `out` becomes a model folder

recipe.py   what a run is: one YAML file      data.py      clips, frame masks, batches
losses.py   what is made small                trainer.py   the loop: gradients, averages, checkpoints, processes
models.py   untrained models; files           run.py       one stage after the other
"""


def __getattr__(name):
    if name == "train":  # lazily, and quietly: it imports paddle
        from opensora_lite.device import import_paddle

        import_paddle()
        from opensora_lite.training.run import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
