"""`mlic doctor`: checks of shards, labels and the machine before training."""

from mlic.command import make_callable

make_callable(__name__, "mlic.doctor.doctor:doctor", "mlic.config.data:DoctorConfig")
