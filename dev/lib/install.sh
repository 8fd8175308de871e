# shellcheck shell=bash
# Installs what the machine lacks, through its ordinary package clients, and reports it.
#
# Downloads go to $CACHE, into a folder named after the content of the file that lists them. A folder appears only when it is
# complete, so an interrupted download is retried.

APT_UPDATED=

as_root() {
  if is_root; then "$@"; else sudo "$@"; fi
}

# apt COMMAND…: runs apt-get, after waiting for another one that runs.
apt() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 "$@" </dev/null >>"$CACHE/apt.log" 2>&1
}

# A fresh image knows no packages before its first update. A failed update is no reason to give up: the lists may suffice.
apt_update() {
  [ -n "$APT_UPDATED" ] && return
  APT_UPDATED=yes
  : >"$CACHE/apt.log"
  apt update || say "apt-get update failed, using the present package lists"
}

can_install() { command -v apt-get >/dev/null && { is_root || command -v sudo >/dev/null; }; }

# apt_install WHY PACKAGE…
apt_install() {
  local why=$1
  shift
  say "installing $* (apt): $why"
  can_install || die "apt-get is missing, or neither root nor sudo is available; install $* (Debian's names) by hand: $why"
  mkdir -p "$CACHE"
  apt_update
  apt install -y --no-install-recommends "$@" || {
    tail -n 15 "$CACHE/apt.log" >&2
    die "could not install $*; install it by hand (apt-get install $*); the whole log is $CACHE/apt.log"
  }
}

java_major() { "$1" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p;' | head -n 1; }

# Prints a java of version 17 or newer: Kafka 4 and the registry need it.
find_java() {
  local java
  for java in ${JAVA_HOME:+"$JAVA_HOME/bin/java"} "$(command -v java)" /usr/lib/jvm/*/bin/java; do
    if [ -x "$java" ] && [ "$(java_major "$java")" -ge 17 ] 2>/dev/null; then
      printf '%s\n' "$java"
      return
    fi
  done
  return 1
}

install_java() {
  find_java >/dev/null && return
  # Debian 12 and Ubuntu have 17, Debian 13 has only 21.
  if [ "$(. /etc/os-release 2>/dev/null && echo "${VERSION_CODENAME-}")" = trixie ]; then
    apt_install "Java, which Kafka and the schema registry run on" openjdk-21-jre-headless
  else
    apt_install "Java, which Kafka and the schema registry run on" openjdk-17-jre-headless
  fi
  find_java >/dev/null || die "no Java 17 or newer was found; install one, or set JAVA_HOME to it"
}

# Prints the folder of PostgreSQL's binaries: the newest, or the one of the existing cluster's version.
find_postgres() {
  local want dir best='' best_major=15 major
  want=$(cat "$PG_DATA/PG_VERSION" 2>/dev/null)
  for dir in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin "$(dirname "$(command -v postgres || echo /-/-)")"; do
    if [ ! -x "$dir/postgres" ] || [ ! -x "$dir/initdb" ] || [ ! -x "$dir/psql" ]; then continue; fi
    major=$("$dir/postgres" --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')
    if [ "$major" -lt "$best_major" ] || [ "$major" != "${want:-$major}" ]; then continue; fi
    best=$dir best_major=$major
  done
  [ -n "$best" ] && printf '%s\n' "$best"
}

install_postgres() {
  local conf=/etc/postgresql-common/createcluster.d/ctrip-dev.conf failed=
  find_postgres >/dev/null && return
  # Debian's package creates and starts a system cluster when it is installed. Only the programs are needed, so this setting
  # prevents it during the installation.
  if can_install; then
    as_root mkdir -p "${conf%/*}"
    echo 'create_main_cluster = false' | as_root tee "$conf" >/dev/null
  fi
  # In a subshell, so that the file goes even if this fails.
  (apt_install "the state of record" postgresql) || failed=1
  if can_install; then as_root rm -f "$conf"; fi
  [ -z "$failed" ] || exit 1
  find_postgres >/dev/null || die "no PostgreSQL 15 or newer ${PG_DATA:+that fits $PG_DATA }was found; install one"
}

# fetch NAME FILE FUNCTION: fills the cache folder of FILE with FUNCTION, which gets an empty folder.
fetch() {
  local name=$1 file=$2 fill=$3 target part
  target=$(cached "$name" "$file")
  [ -d "$target" ] && return
  part="$target.part"
  rm -rf "$part"
  mkdir -p "$part"
  "$fill" "$part" || {
    tail -n 15 "$CACHE/$name.log" >&2
    die "could not download $name; the log is $CACHE/$name.log"
  }
  mv "$part" "$target"
}

cached() { printf '%s/%s-%s\n' "$CACHE" "$1" "$(fingerprint "$2")"; }

KAFKA_FILE=$HERE/kafka/pom.xml
REGISTRY_FILE=$HERE/registry/pom.xml
ANVIL_FILE=$HERE/anvil/package.json
GETH_FILE=$HERE/geth/version
PROMETHEUS_FILE=$HERE/prometheus/package

need_maven() {
  command -v mvn >/dev/null || apt_install "Maven, which downloads Kafka and the schema registry" maven
}

# It runs for some seconds, so the JVM's second compiler costs more than it saves.
maven() {
  local name=$1 folder=$2
  MAVEN_OPTS="${MAVEN_OPTS--XX:TieredStopAtLevel=1 -XX:+UseSerialGC}" mvn -B -q -f "$HERE/$name/pom.xml" \
    dependency:copy-dependencies -DoutputDirectory="$folder" </dev/null >"$CACHE/$name.log" 2>&1
}

fill_kafka() {
  need_maven
  say "downloading Apache Kafka (Maven, 43 MB): the event log"
  maven kafka "$1"
}

fill_registry() {
  need_maven
  say "downloading Apicurio Registry (Maven, 100 MB): the schema registry"
  maven registry "$1" && tar xzf "$1"/*.tar.gz -C "$1" && rm "$1"/*.tar.gz
}

# npm_install NAME FOLDER [PACKAGE…]: these packages, or those that dev/NAME/package.json asks for.
npm_install() {
  local name=$1 folder=$2
  shift 2
  command -v npm >/dev/null || apt_install "npm, which downloads $name" nodejs npm ca-certificates
  if [ $# -eq 0 ]; then cp "$HERE/$name/package.json" "$folder" || return; fi
  npm install --prefix "$folder" --ignore-scripts --no-audit --no-fund --no-package-lock "$@" </dev/null >"$CACHE/$name.log" 2>&1
}

fill_anvil() {
  local arch=amd64 version
  say "downloading anvil (npm, 43 MB): the EVM node"
  # The platform's own package has the program, which is all that runs. It is installed by name, since npm silently skips it
  # as an optional dependency where Node is older than the launcher requires (Debian 12).
  if [ "$(uname -m)" = aarch64 ]; then arch=arm64; fi
  version=$(sed -n 's/.*"@foundry-rs\/anvil": "\(.*\)".*/\1/p' "$ANVIL_FILE")
  npm_install anvil "$1" "@foundry-rs/anvil-linux-$arch@$version"
  anvil_in "$1" >/dev/null
}

anvil_in() {
  local binary
  for binary in "$1"/node_modules/@foundry-rs/anvil-*/bin/anvil; do
    if [ -x "$binary" ]; then
      printf '%s\n' "$binary"
      return
    fi
  done
  return 1
}

fill_solc() {
  say "downloading solc (npm, 10 MB): the Solidity compiler"
  npm_install solc "$1"
}

fill_autocannon() {
  say "downloading autocannon (npm, 7 MB): HTTP clients for the bench"
  npm_install autocannon "$1"
}

# Go 1.21 and newer fetch the version that a module asks for. Debian 12's is older.
find_go() {
  local version
  version=$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null) || return 1
  [[ $version =~ ^go1\.([0-9]+) ]] && [ "${BASH_REMATCH[1]}" -ge 21 ]
}

# Whether apt has a Go that will do. Debian 12's would be installed for nothing.
apt_has_go() {
  local version
  can_install || return
  apt_update
  version=$(LC_ALL=C apt-cache policy golang-go | sed -n 's/^ *Candidate: \([0-9].*\)/\1/p')
  [ -n "$version" ] && dpkg --compare-versions "$version" ge 2:1.21
}

# Compiled, since go-ethereum is in no registry of programs. Without C, which costs nothing here but some speed of its curves.
fill_geth() {
  local version
  version=$(cat "$GETH_FILE")
  say "compiling geth $version (Go's module proxy, some minutes): the EVM node that measures gas"
  GOTOOLCHAIN=auto GOBIN=$1 CGO_ENABLED=0 go install "github.com/ethereum/go-ethereum/cmd/geth@$version" \
    </dev/null >"$CACHE/geth.log" 2>&1
}

# Unpacked and not installed: the package would start a service.
fill_prometheus() {
  local package
  package=$(cat "$PROMETHEUS_FILE")
  say "downloading Debian's $package (apt, 19 MB): it checks the alerts"
  apt_update
  (
    cd "$1" && apt-get download "$package" && dpkg-deb --extract "$package"_*.deb unpacked &&
      mv unpacked/usr/bin/promtool unpacked/usr/bin/prometheus . && rm -r unpacked "$package"_*.deb
  ) </dev/null >"$CACHE/prometheus.log" 2>&1
}

# One installation at a time: two stacks that start at the same time on a fresh machine share one download. The lock is on the
# folder itself, so that a user with read access only can use the cache too.
lock_cache() {
  mkdir -p "$CACHE"
  exec 8<"$CACHE"
  if ! flock -n 8; then
    say "waiting for another dev/stack that is installing"
    flock 8
  fi
}

# Prints the folder of the packages that dev/NAME/package.json asks for.
install_packages() {
  local file=$HERE/$1/package.json
  lock_cache
  fetch "$1" "$file" "fill_$1"
  printf '%s/node_modules\n' "$(cached "$1" "$file")"
}

# Prints the path of geth. Exits with 3, and says so, where there is no Go that compiles it: what needs it is left out. With
# CTRIP_NEED_GETH=1 that is an error, as it always is where there is Go and geth does not compile.
install_geth() {
  local geth
  geth=$(cached geth "$GETH_FILE")/geth
  if [ ! -x "$geth" ]; then
    lock_cache
    if ! find_go && ! command -v go >/dev/null && apt_has_go; then
      (apt_install "Go, which compiles geth" golang-go) || true
    fi
    if ! find_go; then
      [ "${CTRIP_NEED_GETH-}" != 1 ] || die "there is no Go 1.21 or newer, which compiles geth, and CTRIP_NEED_GETH=1"
      say "there is no Go 1.21 or newer, which compiles geth: the tests that need geth are SKIPPED"
      exit 3
    fi
    fetch geth "$GETH_FILE" fill_geth
  fi
  printf '%s\n' "$geth"
}

# Prints the path of promtool. Exits with 3, and says so, where it can't be had: what needs it is left out. With
# CTRIP_NEED_PROMTOOL=1 that is an error.
install_promtool() {
  local promtool
  promtool=$(cached prometheus "$PROMETHEUS_FILE")/promtool
  if [ ! -x "$promtool" ]; then
    lock_cache
    if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
      [ "${CTRIP_NEED_PROMTOOL-}" != 1 ] || die "there is no apt-get, which downloads Prometheus, and CTRIP_NEED_PROMTOOL=1"
      say "there is no apt-get, which downloads Prometheus: the tests of alerts and dashboards are SKIPPED"
      exit 3
    fi
    fetch prometheus "$PROMETHEUS_FILE" fill_prometheus
  fi
  printf '%s\n' "$promtool"
}

# shellcheck disable=SC2034 # parts.sh reads what this sets
# Installs everything that the parts need, and sets JAVA, PG_BIN, ANVIL_BIN, KAFKA_HOME and REGISTRY_HOME.
install_parts() {
  [ "$(uname -s)" = Linux ] || die "this runs on Linux; elsewhere use docker compose (docker-compose.yml)"
  lock_cache
  install_java
  fetch kafka "$KAFKA_FILE" fill_kafka
  fetch registry "$REGISTRY_FILE" fill_registry
  install_postgres
  fetch anvil "$ANVIL_FILE" fill_anvil
  exec 8>&-

  JAVA=$(find_java)
  PG_BIN=$(find_postgres)
  KAFKA_HOME=$(cached kafka "$KAFKA_FILE")
  REGISTRY_HOME=$(cached registry "$REGISTRY_FILE")
  ANVIL_BIN=$(anvil_in "$(cached anvil "$ANVIL_FILE")") || die "no anvil in $CACHE; remove that folder and try again"
}

# Installs what `cargo build` needs, since rdkafka compiles librdkafka from source.
install_toolchain() {
  local missing=() wanted oldest has
  command -v cc >/dev/null || missing+=(gcc libc6-dev)
  command -v c++ >/dev/null || missing+=(g++)
  command -v make >/dev/null || missing+=(make)
  command -v pkg-config >/dev/null || missing+=(pkg-config)
  # Only the compiler knows in which folder a header may be.
  echo '#include <zlib.h>' | cc -E - >/dev/null 2>&1 || missing+=(zlib1g-dev)
  echo '#include <openssl/ssl.h>' | cc -E - >/dev/null 2>&1 || missing+=(libssl-dev)
  if [ ${#missing[@]} -gt 0 ]; then apt_install "the C side of the build (librdkafka)" "${missing[@]}"; fi

  wanted=$(sed -n 's/^channel = "\(.*\)"/\1/p' "$HERE/../rust-toolchain.toml")
  oldest=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$HERE/../Cargo.toml")
  [ "${wanted%.*}" = "$oldest" ] || die "rust-toolchain.toml has $wanted and Cargo.toml has rust-version $oldest: make them agree"
  command -v cargo >/dev/null ||
    die "there is no cargo; install Rust $wanted through rustup (https://rustup.rs); apt's is too old"
  # Where rustup is, it takes the pinned toolchain; elsewhere a newer one will do.
  has=$(cd "$HERE" && cargo --version | cut -d' ' -f2)
  [ -n "$has" ] || die "cargo does not run here: rustup toolchain install $wanted --component clippy --component rustfmt"
  [ "$(printf '%s\n%s\n' "$wanted" "$has" | sort -V | head -n 1)" = "$wanted" ] ||
    die "cargo is $has; version $wanted is needed: rustup toolchain install $wanted"
}
