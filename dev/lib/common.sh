# shellcheck shell=bash
# Messages, ports and processes, shared by the other files of dev/stack.

# Progress goes to stderr; stdout is for data only.
say() { printf 'dev/stack: %s\n' "$*" >&2; }

die() {
  say "error: $*"
  exit 1
}

is_root() { [ "$(id -u)" -eq 0 ]; }

# Identifies a file's content, for cache folders: another version in a pom.xml is another folder.
fingerprint() { cksum <"$1" | cut -d' ' -f1; }

# True if nothing listens on the port, on any address. Reads the kernel's table, since a trial bind would leave the port in
# TIME_WAIT.
port_free() {
  local hex
  hex=$(printf '%04X' "$1")
  ! cat /proc/net/tcp /proc/net/tcp6 2>/dev/null |
    awk -v port="$hex" '$4 == "0A" { n = split($2, a, ":"); if (a[n] == port) found = 1 } END { exit !found }'
}

port_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# http PORT METHOD PATH [BODY]: prints the response with its headers. In bash only, since a bare machine has no curl.
http() {
  local port=$1 method=$2 path=$3 body=${4-} line
  (
    exec 3<>"/dev/tcp/127.0.0.1/$port" || exit 1
    printf '%s %s HTTP/1.0\r\nHost: 127.0.0.1:%s\r\nContent-Type: application/json\r\nContent-Length: %s\r\n\r\n%s' \
      "$method" "$path" "$port" "${#body}" "$body" >&3
    # A server that accepts and never responds must not block this script.
    while IFS= read -r -t 2 -u 3 line || [ -n "$line" ]; do
      printf '%s\n' "${line%$'\r'}"
    done
  ) 2>/dev/null
}

# running NAME: does the part run? A pid alone proves nothing, since pids are reused after a crash or a reboot: the process
# must also have this data directory's path on its command line.
running() {
  local pid
  pid=$(part_pid "$1") && owned_by "$pid" "$(marker "$1")"
}

part_pid() { cat "$DATA/$1.pid" 2>/dev/null; }

owned_by() {
  local line
  line=$(tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline") && [[ $line == *"$2"* ]]
} 2>/dev/null

# spawn NAME COMMAND…: starts a daemon that outlives this script and inherits nothing from it: neither the terminal, nor the
# pipes of a caller's $(…), nor the lock. setsid does not fork here, so $! is the daemon's own pid.
spawn() {
  local name=$1 fd
  shift
  (
    for fd in /proc/self/fd/*; do
      fd=${fd##*/}
      if [ "$fd" -gt 2 ] && [ "$fd" -ne 255 ]; then eval "exec $fd>&-"; fi
    done
    cd /
    exec setsid "$@" </dev/null >>"$DATA/logs/$name.log" 2>&1
  ) &
  printf '%s\n' "$!" >"$DATA/$name.pid"
}
