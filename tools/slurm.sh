#!/usr/bin/env bash
# tools/slurm.sh start | stop | status     (root; Debian 12; idempotent)
# A SLURM cluster of one node, this machine, to try the study's SLURM profile without a cluster. It needs neither systemd
# nor cgroups, so it runs in a container, and keeps configuration, key, sockets, spool, logs and accounting in one
# directory, REID_SLURM (default /var/tmp/reid_slurm). While it runs, /etc/slurm/slurm.conf is a link to its configuration:
# Snakemake's job steps drop every SLURM_ variable, SLURM_CONF too, so that only the standard place works for them.
set -euo pipefail
HOME_DIR=$(realpath -m "${REID_SLURM:-/var/tmp/reid_slurm}")
STANDARD=/etc/slurm/slurm.conf
PACKAGES="slurm-wlm slurmdbd munge mariadb-server-core mariadb-client-core"
export SLURM_CONF=$HOME_DIR/etc/slurm.conf
export MYSQL_UNIX_PORT=$HOME_DIR/run/mariadb.sock   # slurmdbd finds its database by this socket: no port, no password

say() { echo "slurm: $*" >&2; }
pid_of() { cat "$HOME_DIR/run/$1.pid" 2>/dev/null || true; }
# A pid file outlives a killed daemon, and its number may be another process by now, or a zombie: look at name and state.
alive() { local pid; pid=$(pid_of "$1"); [ -n "$pid" ] && [[ $(cat "/proc/$pid/stat" 2>/dev/null) == "$pid ($1"*") "[!ZX]* ]]; }
wait_for() {  # wait_for WHAT COMMAND...: until it succeeds
  local what=$1; shift
  for _ in $(seq 50); do timeout 5 "$@" >/dev/null 2>&1 && return; sleep 0.4; done
  say "$what failed; see $HOME_DIR/log"; return 1
}
daemon() {  # daemon NAME COMMAND...: start it unless it runs
  local name=$1; shift
  if alive "$name"; then say "$name runs already"; return; fi
  "$@" >>"$HOME_DIR/log/$name.out" 2>&1 </dev/null || { say "$name failed; see $HOME_DIR/log"; return 1; }
  say "$name started"
}

install() {
  if dpkg-query --show $PACKAGES >/dev/null 2>&1 && command -v slurmctld >/dev/null; then return; fi
  say "installing $PACKAGES"
  apt-get update -qq >&2
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $PACKAGES >"$HOME_DIR/log/apt.out" 2>&1
}

configure() {
  local host; host=$(hostname -s)
  # munged refuses a key, or a directory above its socket, that others may write to.
  [ -s "$HOME_DIR/etc/munge.key" ] || (umask 077; head -c 1024 /dev/urandom >"$HOME_DIR/etc/munge.key")
  cat >"$HOME_DIR/etc/slurm.conf" <<CONF
ClusterName=reid
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$HOME_DIR/run/munge.sock
CredType=cred/munge
StateSaveLocation=$HOME_DIR/state
SlurmdSpoolDir=$HOME_DIR/spool
SlurmctldPidFile=$HOME_DIR/run/slurmctld.pid
SlurmdPidFile=$HOME_DIR/run/slurmd.pid
SlurmctldLogFile=$HOME_DIR/log/slurmctld.log
SlurmdLogFile=$HOME_DIR/log/slurmd.log
# containers seldom give cgroups away: follow processes by parent, bind nothing
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# cores and memory are what jobs share; a lost node returns by itself
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
# sacct answers from slurmdbd; usage is read from /proc every 5 s
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
# what talks to slurmdbd takes munge's socket from here, not from AuthInfo
AccountingStoragePass=$HOME_DIR/run/munge.sock
AccountingStoreFlags=job_comment
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5
# look for work as soon as a job ends, forget it after 5 minutes (squeue shows it until then)
SchedulerParameters=sched_interval=2,bf_interval=5
MinJobAge=300
KillWait=10
MailProg=/bin/true
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) * 9 / 10240)) State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
  cat >"$HOME_DIR/etc/slurmdbd.conf" <<CONF
DbdHost=localhost
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$HOME_DIR/run/munge.sock
PidFile=$HOME_DIR/run/slurmdbd.pid
LogFile=$HOME_DIR/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
CONF
  chmod 600 "$HOME_DIR/etc/slurmdbd.conf"   # slurmdbd insists
}

start() {
  [ "$(id -u)" = 0 ] || { say "start it as root: slurmd runs jobs for others"; exit 1; }
  if [ -e "$STANDARD" ] && [ "$(readlink -f "$STANDARD")" != "$SLURM_CONF" ]; then
    say "$STANDARD belongs to another cluster: use that one, or stop it first"; exit 1
  fi
  (umask 022; mkdir -p "$HOME_DIR"/{etc,run,log,state,spool,db})
  install
  configure
  ln -sfn "$SLURM_CONF" "$STANDARD"
  daemon munged munged --key-file="$HOME_DIR/etc/munge.key" --socket="$HOME_DIR/run/munge.sock" --pid-file="$HOME_DIR/run/munged.pid" \
    --log-file="$HOME_DIR/log/munged.log" --seed-file="$HOME_DIR/state/munged.seed" --num-threads=2
  [ -d "$HOME_DIR/db/mysql" ] || mariadb-install-db --user=root --datadir="$HOME_DIR/db" --skip-test-db >"$HOME_DIR/log/mariadb-install.out" 2>&1
  if alive mariadbd; then say "mariadbd runs already"; else   # it stays in the foreground: send it to the background
    setsid mariadbd --no-defaults --user=root --datadir="$HOME_DIR/db" --socket="$MYSQL_UNIX_PORT" --pid-file="$HOME_DIR/run/mariadbd.pid" \
      --skip-networking --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 >"$HOME_DIR/log/mariadbd.out" 2>&1 </dev/null &
    wait_for mariadbd mariadb --no-defaults --execute "select 1"
    say "mariadbd started"
  fi
  daemon slurmdbd slurmdbd
  wait_for slurmdbd sacctmgr -n list cluster
  # A job of a cluster that the database does not know is not accounted for.
  [ -n "$(sacctmgr -n list cluster format=cluster)" ] || sacctmgr -i add cluster reid >/dev/null
  daemon slurmctld slurmctld
  wait_for slurmctld scontrol ping
  daemon slurmd slurmd
  wait_for "the node" sh -c 'sinfo -h -o %T | grep -qE "idle|mixed|allocated"'
  status
}

stop() {  # the node first, the database last
  local name
  for name in slurmd slurmctld slurmdbd mariadbd munged; do
    if ! alive $name; then continue; fi
    kill "$(pid_of $name)"
    wait_for "end of $name" sh -c "! kill -0 $(pid_of $name)"; say "$name stopped"
  done
  if [ "$(readlink "$STANDARD")" = "$SLURM_CONF" ]; then rm "$STANDARD"; fi
}

status() {
  local name down=0
  for name in munged mariadbd slurmdbd slurmctld slurmd; do
    if alive $name; then echo "$name $(pid_of $name)"; else echo "$name down"; down=1; fi
  done
  [ $down = 0 ] && sinfo --format="partition %P, nodes %D %T, cpus %c, memory %m MB" --noheader && echo "everything else is under $HOME_DIR"
  return $down
}

case ${1:-} in
  start|stop|status) "$1" ;;
  *) sed -n 2,6p "$0"; exit 2 ;;
esac
