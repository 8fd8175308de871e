# shellcheck shell=bash
# Gets what the machine lacks, through its ordinary package clients, and says so.
#
# What is downloaded lands in $CACHE, in a folder named after the content of the file that asks for it; a folder appears
# only when it is complete, so an interrupted download is simply done again.

APT_UPDATED=

# apt_install WHY PACKAGE…
apt_install() {
  local why=$1 root=()
  shift
  say "installing $* (apt): $why"
  command -v apt-get >/dev/null || die "there is no apt-get here; install $* (Debian's names) by hand: $why"
  if ! is_root; then
    command -v sudo >/dev/null || die "installing needs root and there is no sudo; as root: apt-get install $*"
    root=(sudo)
  fi
  mkdir -p "$CACHE"
  {
    if [ -z "$APT_UPDATED" ]; then "${root[@]}" apt-get update || true; fi
    APT_UPDATED=yes
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
      apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@"
  } </dev/null >"$CACHE/apt.log" 2>&1 || {
    tail -n 15 "$CACHE/apt.log" >&2
    die "could not install $*; do it by hand (apt-get install $*), the whole log is $CACHE/apt.log"
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
  local package
  find_java >/dev/null && return
  for package in openjdk-17-jre-headless openjdk-21-jre-headless; do
    # Debian 12 has 17, Debian 13 has 21. On a fresh image apt knows neither before its first update.
    if [ -z "$(apt-cache policy 2>/dev/null "$package" | sed -n 's/.*Candidate: \([0-9].*\)/\1/p')" ] &&
      [ "$package" != openjdk-21-jre-headless ] && [ -n "$(ls /var/lib/apt/lists/*Packages* 2>/dev/null)" ]; then
      continue
    fi
    apt_install "Java 17, which Kafka and the schema registry run on" "$package"
    break
  done
  find_java >/dev/null || die "no Java 17 or newer was found; install one, or set JAVA_HOME to it"
}

# Prints the folder of a PostgreSQL's binaries, the newest here, or the one that fits the cluster that is already there.
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
  local conf=/etc/postgresql-common/createcluster.d/ctrip-dev.conf root=()
  find_postgres >/dev/null && return
  is_root || root=(sudo)
  # Debian's package makes and starts a cluster of the system when it is installed. We only want the programs, so it is
  # told not to, for as long as the installation takes.
  "${root[@]}" mkdir -p "${conf%/*}"
  echo 'create_main_cluster = false' | "${root[@]}" tee "$conf" >/dev/null
  apt_install "the state of record" postgresql
  "${root[@]}" rm -f "$conf"
  find_postgres >/dev/null || die "no PostgreSQL 15 or newer ${PG_DATA:+that fits $PG_DATA }was found; install one"
}

# fetch NAME FILE FUNCTION: fills the cache folder of FILE by FUNCTION, which gets an empty folder to fill.
fetch() {
  local name=$1 file=$2 fill=$3 target part
  target=$(cached "$name" "$file")
  [ -d "$target" ] && return
  part="$target.part"
  rm -rf "$part"
  mkdir -p "$part"
  "$fill" "$part" || die "could not download $name; the log is $CACHE/$name.log"
  mv "$part" "$target"
}

cached() { printf '%s/%s-%s\n' "$CACHE" "$1" "$(fingerprint "$2")"; }

KAFKA_FILE=$HERE/kafka/pom.xml
REGISTRY_FILE=$HERE/registry/pom.xml
ANVIL_FILE=$HERE/anvil/package.json

maven() {
  local name=$1 folder=$2
  command -v mvn >/dev/null || apt_install "Maven, which downloads Kafka and the schema registry" maven
  mvn -B -q -f "$HERE/$name/pom.xml" dependency:copy-dependencies -DoutputDirectory="$folder" \
    </dev/null >"$CACHE/$name.log" 2>&1 || {
    tail -n 15 "$CACHE/$name.log" >&2
    return 1
  }
}

fill_kafka() {
  say "downloading Apache Kafka (Maven, 43 MB): the event log"
  maven kafka "$1"
}

fill_registry() {
  say "downloading Apicurio Registry (Maven, 100 MB): the schema registry"
  maven registry "$1" && tar xzf "$1"/*.tar.gz -C "$1" && rm "$1"/*.tar.gz
}

fill_anvil() {
  command -v npm >/dev/null || apt_install "npm, which downloads anvil" nodejs npm
  say "downloading anvil (npm, 43 MB): the EVM node"
  cp "$ANVIL_FILE" "$1/"
  # No install scripts: the platform's own package, an optional dependency, holds the program, and that is all we run.
  npm install --prefix "$1" --ignore-scripts --no-audit --no-fund --no-package-lock </dev/null >"$CACHE/anvil.log" 2>&1
  anvil_in "$1" >/dev/null || {
    tail -n 15 "$CACHE/anvil.log" >&2
    return 1
  }
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

# shellcheck disable=SC2034 # parts.sh reads what this sets
# Everything that the parts need; then JAVA, PG_BIN, ANVIL_BIN, KAFKA_HOME and REGISTRY_HOME say where it is.
install_parts() {
  [ "$(uname -s)" = Linux ] || die "this runs on Linux; elsewhere use docker compose (docker-compose.yml)"
  mkdir -p "$CACHE"
  # Two stacks that start at the same time on a fresh machine share one download.
  exec 8>"$CACHE/lock"
  if ! flock -n 8; then
    say "waiting for another dev/stack that is installing"
    flock 8
  fi
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

# What `cargo build` needs: rdkafka compiles librdkafka from its source.
install_toolchain() {
  local missing=() wanted has
  command -v cc >/dev/null || missing+=(gcc libc6-dev)
  command -v c++ >/dev/null || missing+=(g++)
  command -v make >/dev/null || missing+=(make)
  command -v pkg-config >/dev/null || missing+=(pkg-config)
  # The header may lie in a folder that only the compiler knows, so the compiler is asked.
  echo '#include <zlib.h>' | cc -E - >/dev/null 2>&1 || missing+=(zlib1g-dev)
  if [ ${#missing[@]} -gt 0 ]; then apt_install "the C side of the build (librdkafka)" "${missing[@]}"; fi

  wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$HERE/../Cargo.toml")
  command -v cargo >/dev/null ||
    die "there is no cargo; install Rust $wanted or newer through rustup (https://rustup.rs); apt's is too old"
  has=$(cargo --version | cut -d' ' -f2)
  [ "$(printf '%s\n%s\n' "$wanted" "$has" | sort -V | head -n 1)" = "$wanted" ] ||
    die "cargo is $has and $wanted or newer is needed: rustup update stable"
}
