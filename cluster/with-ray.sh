#!/usr/bin/env bash
# Bring Ray up over a SLURM allocation, run one command on the first node, and take Ray down again.
#
#   srun --ntasks-per-node=1 bash with-ray.sh COMMAND [ARG ...]
#
# Every node runs this script once. The exit code is the command's own. Ports come from the job's id, processes are ended
# by the job's own temporary folder and never by `ray stop`, so that jobs can share a node. The cluster has a token of its
# own, which only the user can read; when the token is gone, the job is over.
set -u
users_umask=$(umask)   # for what the command writes; what this script writes is for the user alone
umask 077

[ $# -gt 0 ] || { echo "Error: with-ray.sh got no command." >&2; exit 2; }
: "${SLURM_JOB_ID:?Error: with-ray.sh runs inside a SLURM job, under srun}"
id=$SLURM_JOB_ID nodes=${SLURM_NNODES:-1} rank=${SLURM_NODEID:-0} wait_s=${MLIC_CLUSTER_WAIT_S:-300}
port=$((20000 + id % 1000 * 10))
shared=${SLURM_SUBMIT_DIR:-$PWD}/.mlic/$id.${SLURM_RESTART_COUNT:-0}   # on storage that all nodes see
export RAY_TMPDIR=${MLIC_LOCAL_TMP:-/tmp}/mlic-$id                     # short: socket paths end at 107 bytes
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$shared/token RAY_USAGE_STATS_ENABLED=0
log=$shared/ray-node-$rank.log
[ ${#RAY_TMPDIR} -le 39 ] || { echo "Error: MLIC_LOCAL_TMP makes the path $RAY_TMPDIR longer than 39 characters." >&2; exit 2; }
ulimit -n "$(ulimit -Hn)" 2>/dev/null || true
mkdir -p "$shared" "$RAY_TMPDIR/ray"

shm=$(($(df --output=avail -B1 /dev/shm | tail -n 1) * 7 / 10))
store=${MLIC_OBJECT_STORE_BYTES:-$((shm < 2000000000 ? shm : 2000000000))}   # mlic passes paths through it, not pixels
common=(--num-cpus "${SLURM_CPUS_PER_TASK:-1}" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" --object-store-memory "$store"
        --min-worker-port 0 --max-worker-port 0 --dashboard-agent-listen-port $((port + 3)) --disable-usage-stats)

end_ray() {   # this job's Ray only: its command lines carry the job's temporary folder
  local signal
  for signal in TERM KILL; do
    pgrep -f -- "$RAY_TMPDIR/ray/session" | xargs -r kill "-$signal" 2>/dev/null
    for _ in $(seq 20); do pgrep -f -- "$RAY_TMPDIR/ray/session" >/dev/null || break; sleep 0.25; done
  done
  rm -rf "$RAY_TMPDIR"
}

follow_head() {   # a worker node: join, stay, and leave when the token is gone
  for _ in $(seq $((wait_s * 2))); do ls "$shared" >/dev/null; [ -s "$shared/head" ] && break; sleep 0.5; done
  [ -s "$shared/head" ] || { echo "Error: node $rank saw no head within $wait_s s in $shared." >&2; exit 4; }
  RAY_ADDRESS=$(cat "$shared/head"); export RAY_ADDRESS
  export RAY_gcs_rpc_server_reconnect_timeout_s=20   # Ray on this node ends by itself when the head is gone
  trap 'end_ray; exit 143' TERM INT
  until ray start --address "$RAY_ADDRESS" "${common[@]}" >"$log" 2>&1; do
    ls "$shared" >/dev/null 2>&1; [ -e "$shared/token" ] || { end_ray; exit 0; }
    [ $SECONDS -lt "$wait_s" ] || { echo "Error: node $rank could not join Ray:" >&2; tail -n 3 "$log" >&2; end_ray; exit 4; }
    sleep 2
  done
  while ls "$shared" >/dev/null 2>&1 && [ -e "$shared/token" ]; do
    pgrep -f -- "$RAY_TMPDIR/ray/session" >/dev/null || { echo "Error: node $rank lost Ray's head." >&2; exit 4; }
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

[ "$rank" = 0 ] || follow_head

over() { rm -rf "$shared/token" "$shared/head"; end_ray; }
python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$shared/token" || exit 4
ip=$(hostname -I | awk '{print $1}')   # an address, not a name: many machines map their own name to a loopback address
export RAY_ADDRESS=$ip:$port           # before `ray start`, so that nothing below can start or find another cluster
ray start --head --node-ip-address "$ip" --port "$port" \
  --dashboard-host 127.0.0.1 --dashboard-port $((port + 2)) "${common[@]}" >"$log" 2>&1 || {
  echo "Error: ray start failed on $(hostname):" >&2; tail -n 5 "$log" >&2; over; exit 4; }
echo "$RAY_ADDRESS" >"$shared/head.part" && mv "$shared/head.part" "$shared/head"
count_nodes || { tail -n 5 "$log" >&2; over; exit 4; }

(umask "$users_umask"; exec "$@") &
command=$!
trap 'kill -TERM $command 2>/dev/null' TERM INT   # the command stops in good order, and its exit code is ours
wait $command; code=$?
while kill -0 $command 2>/dev/null; do wait $command; code=$?; done
over
[ $code -ne 0 ] || rm -rf "$shared"
rmdir "${SLURM_SUBMIT_DIR:-$PWD}/.mlic" 2>/dev/null
exit $code
