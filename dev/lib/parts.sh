# shellcheck shell=bash
# The four parts. For each: prepare_NAME creates what its first start needs, start_NAME starts the daemon, ready_NAME tells
# whether it serves, and marker NAME is a path in the data directory that its command line contains.

# shellcheck disable=SC2034 # dev/stack reads it
PARTS=(kafka registry postgres anvil)

marker() {
  case $1 in
    kafka) printf '%s\n' "$DATA/kafka/server.properties" ;;
    registry) printf '%s\n' "$DATA/registry/tmp" ;;
    postgres) printf '%s\n' "$PG_DATA" ;;
    anvil) printf '%s\n' "$DATA/anvil/cache" ;;
  esac
}

port_of() {
  local name=${1^^}_PORT
  printf '%s\n' "${!name}"
}

# ── Kafka ────────────────────────────────────────────────────────────────────────────────────────────────────────────

# Listeners of Kafka's server.properties.
kafka_settings() {
  cat <<-END
	listeners=PLAINTEXT://127.0.0.1:$KAFKA_PORT,SASL_PLAINTEXT://127.0.0.1:$KAFKA_SASL_PORT,CONTROLLER://127.0.0.1:$CONTROLLER_PORT
	controller.listener.names=CONTROLLER
	listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT

	# The pipeline is anonymous and may do everything. Named users, on the other port, need ACLs.
	authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
	super.users=User:ANONYMOUS
	sasl.enabled.mechanisms=PLAIN
	listener.name.sasl_plaintext.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \\
	  user_forward="forward" user_shop="shop" user_rival="rival";
	END
}

prepare_kafka() {
  mkdir -p "$DATA/kafka"
  # Written at every start: the data may have been moved, and the ports may have been chosen anew.
  cat >"$DATA/kafka/server.properties" <<-EOF
	process.roles=broker,controller
	node.id=1
	controller.quorum.bootstrap.servers=127.0.0.1:$CONTROLLER_PORT
	$(if is_secure; then secure_kafka_settings; else kafka_settings; fi)

	log.dirs=$DATA/kafka/data

	# One node: every internal topic has one copy, and few partitions, which start and fail over faster.
	offsets.topic.replication.factor=1
	offsets.topic.num.partitions=4
	transaction.state.log.replication.factor=1
	transaction.state.log.min.isr=1
	transaction.state.log.num.partitions=4
	share.coordinator.state.topic.replication.factor=1
	share.coordinator.state.topic.min.isr=1

	# Topics are a contract, created by "ctrip topics apply"; a misspelt name must fail.
	auto.create.topics.enable=false
	# A block that is full of transfers becomes a record of many megabytes.
	message.max.bytes=33554432
	replica.fetch.max.bytes=33554432
	socket.request.max.bytes=104857600

	# Consumers start at once, and a killed producer's transaction blocks readers no longer than its own timeout.
	group.initial.rebalance.delay.ms=0
	transaction.abort.timed.out.transaction.cleanup.interval.ms=1000

	# After a kill -9 the controller keeps the old broker's registration for a whole session, and the new one waits for it. A
	# short session fences the broker when the machine is busy, and its transaction coordinators may not come back.
	broker.session.timeout.ms=${KAFKA_SESSION_MS:-18000}
	broker.heartbeat.interval.ms=500

	# A small machine: the defaults take 128 MB of the heap for compaction alone.
	log.cleaner.dedupe.buffer.size=33554432
	num.network.threads=2
	num.io.threads=4
	EOF
  local users=()
  if is_secure; then mapfile -t users < <(secure_kafka_users); fi
  # Formatting writes meta.properties last; without it nothing was ever stored.
  [ -f "$DATA/kafka/data/meta.properties" ] && return
  rm -rf "$DATA/kafka/data"
  "$JAVA" -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -cp "$KAFKA_HOME/*" \
    "-Dlog4j2.configurationFile=$HERE/kafka/log4j2.properties" kafka.tools.StorageTool format --standalone \
    -c "$DATA/kafka/server.properties" "${users[@]}" -t "$(head -c 16 /dev/urandom | base64 | tr '+/' 'AB' | cut -c1-22)" \
    >>"$DATA/logs/kafka.log" 2>&1
}

# In the few minutes of a test run the JVM's second compiler costs more than it saves: CTRIP_DEV_SHORT=yes turns it off.
start_kafka() {
  local short=()
  if [ "${CTRIP_DEV_SHORT-}" = yes ]; then short=(-XX:TieredStopAtLevel=1); fi
  spawn kafka "$JAVA" -server -Xms256m -Xmx768m -XX:+UseG1GC -XX:MaxGCPauseMillis=20 -XX:+ExplicitGCInvokesConcurrent \
    "${short[@]}" -Djava.awt.headless=true "-XX:ErrorFile=$DATA/logs/kafka-crash.log" -cp "$KAFKA_HOME/*" \
    "-Dlog4j2.configurationFile=$HERE/kafka/log4j2.properties" kafka.Kafka "$DATA/kafka/server.properties"
}

# The log is this process's own, since it is rotated at every start. The port opens before the broker has joined its cluster;
# the line comes afterwards.
ready_kafka() { grep -q 'Kafka Server started' "$DATA/logs/kafka.log" && port_open "$KAFKA_PORT"; }

# ── Schema registry ──────────────────────────────────────────────────────────────────────────────────────────────────

prepare_registry() { mkdir -p "$DATA/registry/tmp"; }

# By default its database is in memory, and a restart would forget the schema of an id in a Kafka record. The built-in H2
# stores it in a file as well; with WRITE_DELAY=0 an acknowledged schema survives a kill.
start_registry() {
  local port=("QUARKUS_HTTP_PORT=$REGISTRY_PORT")
  if is_secure; then
    port=(QUARKUS_HTTP_INSECURE_REQUESTS=disabled "QUARKUS_HTTP_SSL_PORT=$REGISTRY_PORT"
      "QUARKUS_HTTP_SSL_CERTIFICATE_FILES=$DATA/secure/server.pem" "QUARKUS_HTTP_SSL_CERTIFICATE_KEY_FILES=$DATA/secure/server.key"
      REGISTRY_AUTH_ENABLED=true QUARKUS_OIDC_AUTH_SERVER_URL= "QUARKUS_OIDC_PUBLIC_KEY=$(grep -v -- ----- "$DATA/secure/registry.pub" | tr -d '\n')")
  fi
  spawn registry env QUARKUS_HTTP_HOST=127.0.0.1 "${port[@]}" \
    "REGISTRY_DATASOURCE_URL=jdbc:h2:file:$DATA/registry/db;WRITE_DELAY=0" QUARKUS_DATASOURCE_JDBC_INITIAL_SIZE=2 \
    QUARKUS_DATASOURCE_JDBC_MIN_SIZE=2 QUARKUS_DATASOURCE_JDBC_MAX_SIZE=20 \
    "$JAVA" -Xmx384m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 "-Djava.io.tmpdir=$DATA/registry/tmp" \
    "-XX:ErrorFile=$DATA/logs/registry-crash.log" -jar "$REGISTRY_HOME"/apicurio-registry-app-*-runner.jar
}

ready_registry() {
  if is_secure; then
    port_open "$REGISTRY_PORT" || return
    # Without a token it refuses.
    openssl s_client -quiet -CAfile "$DATA/secure/ca.pem" -connect "127.0.0.1:$REGISTRY_PORT" 2>/dev/null \
      < <(printf 'GET /apis/ccompat/v7/subjects HTTP/1.0\r\nAuthorization: Bearer %s\r\n\r\n' "$(cat "$DATA/secure/token")"; sleep 2) |
      head -n 1 | grep -q ' 200 '
    return
  fi
  [[ $(http "$REGISTRY_PORT" GET /apis/ccompat/v7/subjects) == HTTP/1.?' 200 '* ]]
}

# ── PostgreSQL ───────────────────────────────────────────────────────────────────────────────────────────────────────
#
# PostgreSQL refuses to run as root, so root runs it as the user postgres, who needs access to every parent folder of the
# data. Where it has none (a checkout under `mktemp -d` or /root), the cluster is in /var/tmp, and postgres.dir in the data
# directory has its path. The alternatives were worse: chmod on the parents would change foreign folders, and
# CAP_DAC_READ_SEARCH for the server would let any local client read any file.

# Sets PG_DATA to the place that was already chosen; empty if there is none.
locate_postgres() {
  PG_DATA=
  if [ -f "$DATA/postgres.dir" ]; then
    PG_DATA=$(cat "$DATA/postgres.dir")/data
  elif [ -d "$DATA/postgres" ]; then
    PG_DATA=$DATA/postgres/data
  fi
}

place_postgres() {
  local home
  [ -n "$PG_DATA" ] && return
  if is_root && ! as_postgres test -x "$DATA"; then
    home=$(mktemp -d /var/tmp/ctrip-pg-XXXXXX)
    chmod 755 "$home"
    # In this order: sweep_postgres removes a folder whose owner does not point back at it.
    printf '%s\n' "$home" >"$DATA/postgres.dir"
    printf '%s\n' "$DATA" >"$home/owner"
  else
    mkdir -p "$DATA/postgres"
  fi
  locate_postgres
}

# setpriv and not runuser: it becomes the command instead of waiting for it, so the pid is the server's own.
as_postgres() {
  if is_root; then
    (cd / && exec setpriv --reuid=postgres --regid=postgres --init-groups -- env HOME=/ "$@")
  else
    (cd / && exec "$@")
  fi
}

prepare_postgres() {
  local home=${PG_DATA%/*} new method=(-A trust)
  new=$home/new
  if [ ! -d "$PG_DATA" ]; then
    # Created elsewhere and moved to its place with the database in it, so that it is complete or missing.
    rm -rf "$new"
    mkdir -p "$new"
    if is_root; then chown postgres: "$new"; fi
    if is_secure; then
      (umask 077 && cp "$DATA/secure/ctrip.password" "$home/password")
      if is_root; then chown postgres: "$home/password"; fi
      method=(-A scram-sha-256 "--pwfile=$home/password")
    fi
    {
      as_postgres "$PG_BIN/initdb" -D "$new" -U ctrip "${method[@]}" -E UTF8 --locale=C.UTF-8 --no-instructions &&
        echo 'CREATE DATABASE ctrip' | as_postgres "$PG_BIN/postgres" --single -D "$new" postgres
    } >>"$DATA/logs/postgres.log" 2>&1 || return 1
    if is_secure; then
      echo 'hostssl all all 127.0.0.1/32 scram-sha-256' >"$new/pg_hba.conf"
      cp "$DATA/secure/server.pem" "$DATA/secure/server.key" "$new"
      if is_root; then chown postgres: "$new"/server.*; fi
      rm -f "$home/password"
    fi
    mv "$new" "$PG_DATA"
  fi
  clear_postgres
}

# After a kill -9 of the server its sessions may live on for a moment and hold the shared memory, and the next server refuses
# to start. Their working directory identifies them. A postmaster.pid whose number belongs to another program (after a
# reboot) is removed; any other is left to the server.
clear_postgres() {
  local cwd pid
  for cwd in /proc/[0-9]*/cwd; do
    if [ "$(readlink "$cwd" 2>/dev/null)" = "$PG_DATA" ]; then
      pid=${cwd#/proc/}
      kill -KILL "${pid%/cwd}" 2>/dev/null
    fi
  done
  pid=$(head -n 1 "$PG_DATA/postmaster.pid" 2>/dev/null) || return 0
  if [ -d "/proc/$pid" ] && ! owned_by "$pid" "$PG_DATA"; then rm -f "$PG_DATA/postmaster.pid"; fi
}

# No Unix socket: TCP on loopback suffices, and a socket's path is limited to 107 characters.
# A test run kills the server, not the machine, and its data are gone afterwards: nothing has to reach the disk.
start_postgres() {
  local user=() tls=() short=() options=()
  read -ra options <<<"${CTRIP_DEV_POSTGRES-}"
  if is_secure; then tls=(-c ssl=on -c ssl_cert_file=server.pem -c ssl_key_file=server.key); fi
  if [ "${CTRIP_DEV_SHORT-}" = yes ]; then short=(-c fsync=off -c full_page_writes=off); fi
  if is_root; then user=(setpriv --reuid=postgres --regid=postgres --init-groups -- env HOME=/); fi
  spawn postgres "${user[@]}" "$PG_BIN/postgres" -D "$PG_DATA" -p "$POSTGRES_PORT" -c listen_addresses=127.0.0.1 \
    -c unix_socket_directories= -c max_connections=300 "${tls[@]}" "${short[@]}" "${options[@]}"
}

ready_postgres() {
  local password=() tls=disable
  if is_secure; then
    password=("PGPASSWORD=$(password_of ctrip)" "PGSSLROOTCERT=$DATA/secure/ca.pem")
    tls=verify-full
  fi
  env "${password[@]}" "PGSSLMODE=$tls" "$PG_BIN/psql" -h 127.0.0.1 -p "$POSTGRES_PORT" -U ctrip -d ctrip -Atqc 'SELECT 1' >/dev/null 2>&1
}

# Removes clusters in /var/tmp, and stops their servers, if their data directory was removed by hand (a test's temporary
# folder): nothing can reach them any more.
sweep_postgres() {
  local home owner pid
  for home in /var/tmp/ctrip-pg-*; do
    # Only this script's folders: /var/tmp is shared.
    if [ ! -d "$home" ] || [ -L "$home" ] || [ ! -O "$home" ] || [ ! -f "$home/owner" ]; then continue; fi
    owner=$(cat "$home/owner")
    [ "$(cat "$owner/postgres.dir" 2>/dev/null)" != "$home" ] || continue
    pid=$(head -n 1 "$home/data/postmaster.pid" 2>/dev/null)
    if [ -n "$pid" ] && owned_by "$pid" "$home/data"; then kill -QUIT "$pid" 2>/dev/null; fi
    say "removing $home: its data directory $owner is gone"
    # The owner goes last, so that what a server in its last throes keeps is found by the next sweep.
    rm -rf "$home/data" && rm -rf "$home"
  done
}

# ── anvil ────────────────────────────────────────────────────────────────────────────────────────────────────────────

# A new chain at every start.
prepare_anvil() {
  rm -rf "$DATA/anvil"
  mkdir -p "$DATA/anvil/cache"
}

# Without --prune-history anvil writes old states to disk by the gigabyte; 256 states allow reorgs up to that depth. Quiet,
# or it logs every poll.
start_anvil() {
  spawn anvil "$ANVIL_BIN" --host 127.0.0.1 --port "$ANVIL_PORT" --chain-id 31337 --prune-history 256 --quiet \
    --cache-path "$DATA/anvil/cache"
}

ready_anvil() {
  local reply
  reply=$(http "$ANVIL_PORT" POST / '{"jsonrpc":"2.0","id":1,"method":"eth_chainId","params":[]}')
  [[ $reply == *'"0x7a69"'* ]]
}
