#!/usr/bin/env bash
# A real SLURM of two nodes on one machine, for tests: two_nodes.sh start|stop FOLDER, as root.
#
# Needs slurm-wlm, munge and iproute2. Controller and nodes are processes in namespaces of their own (network, host name,
# mounts, processes), so the nodes have names, addresses, /dev/shm and local scratch that differ, two GPUs each that are
# null devices, and everything ends with one process. FOLDER/bin has sbatch and the others; its path is kept short, for
# sockets live below it. FOLDER/local is each node's own storage; all else is shared.
set -eu
self=$(readlink -f "$0") base=$(readlink -m "$2")
isolated="unshare --net --uts --mount --pid --fork --mount-proc --kill-child"
lives_s=${TWO_NODES_LIFE_S:-5400}

first_child() {   # of a process, as soon as it has one
  local child=
  while [ -z "$child" ]; do
    kill -0 "$1"
    read -r child _ <"/proc/$1/task/$1/children" || sleep 0.02
  done
  echo "$child"
}

write_configuration() {
  (umask 077; head -c 128 /dev/urandom >"$base/munge/key")
  for gpu in 0 1; do mknod "$base/nvidia$gpu" c 1 3; done
  printf '%s\n' '127.0.0.1 localhost' '10.77.0.1 ctl' '10.77.0.11 node1' '10.77.0.12 node2' >"$base/hosts"
  : >"$base/resolv.conf"   # no name server: a name that nobody has is unknown at once
  echo "Name=gpu Type=fake Flags=nvidia_gpu_env File=$base/nvidia[0-1]" >"$base/gres.conf"
  echo 'CgroupPlugin=autodetect' >"$base/cgroup.conf"
  cat >"$base/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=ctl(10.77.0.1)
SlurmUser=root
# A requeued job waits until its credential has expired, which is two minutes unless told otherwise.
AuthInfo=socket=$base/munge/sock,cred_expire=5
StateSaveLocation=$base/state
SlurmdSpoolDir=$base/spool/%n
SlurmctldPidFile=$base/slurmctld.pid
SlurmdPidFile=$base/slurmd-%n.pid
SlurmctldLogFile=$base/log/slurmctld.log
SlurmdLogFile=$base/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$base/log/jobcomp.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
ReturnToService=2
KillWait=15
MinJobAge=600
GresTypes=gpu
NodeName=node1 NodeAddr=10.77.0.11 CPUs=4 RealMemory=16000 Gres=gpu:fake:2
NodeName=node2 NodeAddr=10.77.0.12 CPUs=4 RealMemory=16000 Gres=gpu:fake:2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE
CONF
}

write_commands() {   # wrappers that enter the controller's namespaces; on-ctl runs anything else there
  local name
  for name in sbatch srun scancel squeue sinfo scontrol sacct env; do
    cat >"$base/bin/$name" <<WRAPPER
#!/usr/bin/env bash
p=:\$PATH:; while [[ \$p == *":$base/bin:"* ]]; do p=\${p//":$base/bin:"/:}; done; p=\${p#:}
export PATH=\${p%:} SLURM_CONF=$base/slurm.conf
exec nsenter -t $1 -n -u -m -p --wdns="\$PWD" -- /usr/bin/$name "\$@"
WRAPPER
  done
  mv "$base/bin/env" "$base/bin/on-ctl"
  chmod +x "$base"/bin/*
}

start() {
  rm -rf "$base"
  mkdir -p "$base"/{state,log,munge,spool/node1,spool/node2,scratch/node1,scratch/node2,local,bin}
  chmod 755 "$base" "$base/munge"
  write_configuration
  # shellcheck disable=SC2086 - words
  setsid $isolated bash "$self" controller "$base" >"$base/log/controller.log" 2>&1 </dev/null &
  first_child $! >"$base/controller.pid"
  write_commands "$(cat "$base/controller.pid")"
  for _ in $(seq 300); do
    [ "$("$base/bin/sinfo" -h -o %D/%T 2>/dev/null)" = 2/idle ] && exit 0
    sleep 0.1
  done
  cat "$base"/log/* >&2
  exit 1
}

controller() {
  local name number node
  hostname ctl
  export SLURM_CONF=$base/slurm.conf
  for name in hosts resolv.conf; do mount --bind "$base/$name" "/etc/$name"; done
  ip link set lo up; ip link add br0 type bridge; ip addr add 10.77.0.1/24 dev br0; ip link set br0 up
  munged --socket="$base/munge/sock" --key-file="$base/munge/key" --pid-file="$base/munge/pid" \
    --log-file="$base/munge/log" --seed-file="$base/munge/seed"
  slurmctld
  for number in 1 2; do
    # shellcheck disable=SC2086 - words
    $isolated bash "$self" node "$base" "node$number" "10.77.0.1$number" >"$base/log/node$number.log" 2>&1 </dev/null &
    node=$(first_child $!)
    ip link add "veth$number" type veth peer name eth0 netns "$node"; ip link set "veth$number" master br0 up
  done
  sleep "$lives_s" & wait $!
}

node() {   # NAME ADDRESS
  hostname "$1"
  while ! ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
  ip link set lo up; ip addr add "$2/24" dev eth0; ip link set eth0 up
  mount -t tmpfs -o size=2g tmpfs /dev/shm
  mount --bind "$base/scratch/$1" "$base/local"
  slurmd -N "$1"
  sleep infinity & wait $!
}

case $1 in
  start) start ;;
  controller) controller ;;
  node) node "$3" "$4" ;;
  stop)
    pid=$(cat "$base/controller.pid")
    tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q " controller $base " || exit 0
    kill -KILL "$pid"
    while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done ;;
esac
