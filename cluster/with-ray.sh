#!/usr/bin/env bash
# Bring Ray up over a SLURM allocation, run one command on the first node, and take Ray down again.
#
#   srun --ntasks-per-node=1 bash with-ray.sh COMMAND [ARG ...]
#
# Every node runs this script once. The exit code is the command's own. Ports come from the job's id, processes are ended
# by the job's own temporary folder and never by `ray stop`, so that jobs can share a node. The cluster has a token of its
# own, which only the user can read; when the token is gone, the job is over.
#
# MLIC_JOB_DIR      folder of the job on storage that all nodes see; a file `stop` in it sends USR1 to the command
# MLIC_LOCAL_TMP    storage of each node's own, /tmp unless set
# MLIC_EXCLUSIVE    1 where the job has its nodes for itself: Ray comes up by `ray symmetric-run`
# MLIC_CLUSTER_WAIT_S, MLIC_OBJECT_STORE_BYTES    how long nodes may take to join; Ray's object store
set -u
users_umask=${MLIC_UMASK:-$(umask)}   # for what the command writes; what this script writes is for the user alone
umask 077

[ $# -gt 0 ] || { echo "Error: with-ray.sh got no command." >&2; exit 2; }
: "${SLURM_JOB_ID:?Error: with-ray.sh runs inside a SLURM job, under srun}"
id=$SLURM_JOB_ID nodes=${SLURM_NNODES:-1} rank=${SLURM_NODEID:-0} wait_s=${MLIC_CLUSTER_WAIT_S:-300}
port=$((20000 + id % 1000 * 10))
shared=${MLIC_JOB_DIR:-${SLURM_SUBMIT_DIR:-$PWD}/.mlic/$id.${SLURM_RESTART_COUNT:-0}}
export RAY_TMPDIR=${MLIC_LOCAL_TMP:-/tmp}/mlic-$id                     # short: socket paths end at 107 bytes
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$shared/token RAY_USAGE_STATS_ENABLED=0
export MALLOC_ARENA_MAX=1   # one heap for all threads of a worker, which train faster so on CPUs
log=$shared/ray-node-$rank.log

fail() {   # MESSAGE: what is wrong with this node, and no more of the job
  echo "Error: $(hostname): $1" >&2
  exit 4
}

note() {   # NAME TEXT: a file of the job that is whole or not there
  echo "$2" >"$shared/$1.part" && mv "$shared/$1.part" "$shared/$1"
}

seen() {   # NAME: whether the job's folder has such a file, past what a network file system has cached
  ls "$shared" >/dev/null 2>&1
  [ -e "$shared/$1" ]
}

check_node() {
  local files free
  [ ${#RAY_TMPDIR} -le 39 ] || fail "MLIC_LOCAL_TMP makes the path $RAY_TMPDIR longer than 39 characters."
  mkdir -p "$shared" || fail "cannot make $shared; submit from a folder on storage that all nodes share."
  mkdir -p "$RAY_TMPDIR/ray" || fail "cannot make $RAY_TMPDIR; set MLIC_LOCAL_TMP to storage of the node's own."
  ulimit -n "$(ulimit -Hn)" 2>/dev/null
  files=$(ulimit -n)
  [ "$files" = unlimited ] || [ "$files" -ge 4096 ] ||
    fail "a process may open $files files, and Ray needs 4096; raise the limit (ulimit -Hn)."
  free=$(df --output=avail -B1 /dev/shm | tail -n 1)
  [ "$free" -ge 150000000 ] ||
    fail "/dev/shm has $((free / 1000000)) MB free, and Ray needs 150; make room there, or give a container more."
  store=$((free * 7 / 10))
  store=${MLIC_OBJECT_STORE_BYTES:-$((store < 2000000000 ? store : 2000000000))}   # mlic passes paths, not pixels
}

ray_processes() {   # this job's: those with an open file in its temporary folder, because some change their command line
  find /proc/[0-9]*/fd -lname "$RAY_TMPDIR/*" 2>/dev/null | cut -d/ -f3 | sort -u
}

end_ray() {
  local signal
  for signal in TERM KILL; do
    ray_processes | xargs -r kill "-$signal" 2>/dev/null
    for _ in $(seq 20); do [ -n "$(ray_processes)" ] || break; sleep 0.25; done
  done
  rm -rf "$RAY_TMPDIR"
}

own_address() {   # this node's address that the other nodes of the job reach: hostname -I may begin with a bridge
  local peer to from=
  if [ -n "${MLIC_HEAD_IP:-}" ]; then echo "$MLIC_HEAD_IP"; return; fi
  peer=$(scontrol show hostnames "${SLURM_JOB_NODELIST:-}" 2>/dev/null | grep -vx "${SLURMD_NODENAME:-$(hostname)}" | head -n 1) || peer=
  to=$([ -z "$peer" ] || getent ahostsv4 "$peer" 2>/dev/null | awk 'NR == 1 {print $1}') || to=
  case "$to" in
    "" | 127.*) ;;
    *) from=$(ip -4 route get "$to" 2>/dev/null | sed -n 's/.* src \([0-9.]*\).*/\1/p') || from= ;;
  esac
  echo "${from:-$(hostname -I | awk '{print $1}')}"
}

end_job() {   # CODE
  rm -f "$shared/token" "$shared/head"
  end_ray
  [ "$1" -ne 0 ] || rm -rf "$shared"   # what is left of a failed job are Ray's logs
  rmdir "${shared%/*}" 2>/dev/null
  exit "$1"
}

run() {   # the command, in good order: it hears of the job's end, and its exit code is kept
  local command watch signals=0 heard=-1 code=0
  (umask "$users_umask"; unset MLIC_INSIDE MLIC_UMASK; exec "$@") &
  command=$!
  (until seen stop; do sleep 1; done; kill -USR1 $command) 2>/dev/null &
  watch=$!
  trap 'signals=$((signals + 1)); kill -TERM $command 2>/dev/null' TERM INT
  while [ $heard != $signals ]; do heard=$signals code=0; wait $command || code=$?; done
  kill $watch 2>/dev/null
  note code $code
  return $code
}

wait_for_head() {   # sets RAY_ADDRESS
  until seen head; do
    [ $SECONDS -lt "$wait_s" ] || fail "no head within $wait_s s in $shared."
    sleep 0.5
  done
  RAY_ADDRESS=$(cat "$shared/head"); export RAY_ADDRESS
}

follow_head() {   # a worker node: join, stay, and leave when the token is gone
  wait_for_head
  export RAY_gcs_rpc_server_reconnect_timeout_s=20   # Ray on this node ends by itself when the head is gone
  trap 'end_ray; exit 143' TERM INT
  until ray start --address "$RAY_ADDRESS" "${common[@]}" >"$log" 2>&1; do
    seen token || { end_ray; exit 0; }
    [ $SECONDS -lt "$wait_s" ] || { tail -n 3 "$log" >&2; end_ray; fail "could not join Ray within $wait_s s."; }
    sleep 2
  done
  while seen token; do
    pgrep -f -- "$RAY_TMPDIR/ray/session" >/dev/null || fail "lost Ray's head."
    sleep 1 & wait $!
  done
  end_ray
  exit 0
}

count_nodes() {   # wait until every node of the allocation is in the cluster
  python - "$nodes" "$wait_s" <<'PYTHON'
import os, sys, time
from ray._raylet import GcsClient

want, limit, have, start = int(sys.argv[1]), float(sys.argv[2]), 0, time.monotonic()
while time.monotonic() - start < limit:
    try:
        infos = GcsClient(address=os.environ["RAY_ADDRESS"]).get_all_node_info(timeout=5)
        have = sum(info.state == 0 for info in infos.values())
    except Exception as error:  # the head is still starting
        print(f"waiting for Ray: {error}", file=sys.stderr) if time.monotonic() - start > 60 else None
    if have >= want:
        sys.exit(0)
    time.sleep(0.5)
sys.exit(f"Error: {have} of {want} nodes joined Ray within {limit:.0f} s.")
PYTHON
}

lead() {   # the first node of a job that may share it: Ray's head, and the command
  ray start --head --node-ip-address "$ip" --port "$port" "${head[@]}" "${common[@]}" >"$log" 2>&1 || {
    tail -n 5 "$log" >&2
    echo "Error: $(hostname): ray start failed." >&2
    end_job 4
  }
  note head "$RAY_ADDRESS"
  count_nodes || { tail -n 5 "$log" >&2; end_job 4; }
  ! seen stop || { echo "Error: the job ends before Ray is up; ask for more time." >&2; end_job 4; }
  run "$@"
  end_job $?
}

run_symmetric() {   # every node of a job that has them for itself; symmetric-run calls `ray stop`
  local options=("${common[@]}")
  export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=$wait_s
  if [ "$rank" = 0 ]; then
    note head "$RAY_ADDRESS"
    options+=("${head[@]}")   # on a worker they make `ray start` fail
  else
    wait_for_head
    export RAY_gcs_rpc_server_reconnect_timeout_s=5   # a worker follows the head down at once
  fi
  MLIC_UMASK=$users_umask MLIC_INSIDE=1 ray symmetric-run --address "$RAY_ADDRESS" --min-nodes "$nodes" \
    "${options[@]}" -- bash "$0" "$@" &
  trap 'kill -TERM $! 2>/dev/null' TERM INT
  wait $!
  [ "$rank" = 0 ] || { end_ray; exit 0; }
  # symmetric-run's own exit code is 0 also where Ray did not start and the command never ran.
  seen code || { echo "Error: $(hostname): Ray did not start, or ended before the command." >&2; end_job 4; }
  end_job "$(cat "$shared/code")"
}

if [ "${MLIC_INSIDE:-0}" = 1 ]; then run "$@"; exit $?; fi   # below symmetric-run, on the first node

check_node
common=(--num-cpus "${SLURM_CPUS_PER_TASK:-1}" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" --object-store-memory "$store"
        --min-worker-port 0 --max-worker-port 0 --dashboard-agent-listen-port $((port + 3)) --disable-usage-stats)
head=(--dashboard-host 127.0.0.1 --dashboard-port $((port + 2)) --ray-client-server-port $((port + 4)))
memory=$((${SLURM_MEM_PER_NODE:-$((${SLURM_MEM_PER_CPU:-0} * ${SLURM_CPUS_PER_TASK:-1}))} * 1048576 - store))
[ "$memory" -le 0 ] || common+=(--memory "$memory")   # Ray itself counts all of the machine's
if [ "$rank" = 0 ]; then
  (umask 077; python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$shared/token") || fail "no token."
  ip=$(own_address)                      # an address: many machines map their own name to a loopback address
  export RAY_ADDRESS=$ip:$port           # before `ray start`, so that nothing below can start or find another cluster
fi
if [ "${MLIC_EXCLUSIVE:-0}" = 1 ]; then run_symmetric "$@"; fi
if [ "$rank" = 0 ]; then lead "$@"; else follow_head; fi
