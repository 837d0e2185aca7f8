"""Quality against speed, of several targets and numbers of diffusion steps: `python -m benchmarks frontier`.

    python -m benchmarks frontier train      train a model for each target and seed
    python -m benchmarks frontier tune       search the sampler's settings for each number of steps
    python -m benchmarks frontier measure    measure what was tuned; write JSON, a plot and a table

Each needs a project with data/shards, data/codes and models/tokenizer (`dvc repro codes`), and continues where it was
stopped. Trainings and searches of different targets can run side by side, with OMP_NUM_THREADS=1 each.

The settings are chosen by three classifiers and measured by four others; none is that of the stage `evaluation`.
"""
