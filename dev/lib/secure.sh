# shellcheck shell=bash
# What `dev/stack up --secure` adds: TLS everywhere, logins and certificates, all made here and kept in DATA/secure.
#
# Kafka's main port takes SCRAM-SHA-512 over TLS, its other port certificates (mTLS); nobody but `admin` may do anything without an
# ACL. Postgres takes passwords over TLS, and the registry tokens.

# Users of Kafka, each a role of cTrip, beside admin.
KAFKA_USERS=(ingest detector confirmer api webhooks operator)

is_secure() { [ -d "$DATA/secure" ]; }

# Makes certificates, passwords and the registry's token, unless they are there.
prepare_secure() {
  is_secure && return
  [ ! -e "$DATA/ports" ] || die "$DATA has a stack without TLS; remove it first: dev/stack down --purge --data $DATA"
  command -v openssl >/dev/null || apt_install "openssl, which makes certificates" openssl
  local new=$DATA/secure.new user
  rm -rf "$new"
  (
    umask 077
    mkdir -p "$new" && cd "$new" || exit 1
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj '/CN=cTrip local authority' \
      -keyout ca.key -out ca.pem || exit 1
    for user in server admin "${KAFKA_USERS[@]}"; do certificate "$user" || exit 1; done
    # Kafka reads a key and its certificate from one file.
    cat server.key server.pem >server.both
    for user in ctrip admin "${KAFKA_USERS[@]}"; do openssl rand -hex 16 >"$user.password" || exit 1; done
    token >token
  ) >>"$DATA/logs/secure.log" 2>&1 || die "could not make certificates; the log is $DATA/logs/secure.log"
  mv "$new" "$DATA/secure"
}

# certificate NAME: its name is the user that Kafka sees.
certificate() {
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$1" -keyout "$1.key" -out "$1.csr" &&
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 3650 \
      -extfile <(echo 'subjectAltName=IP:127.0.0.1,DNS:localhost') -out "$1.pem"
}

# Prints a token (RS256) that the registry accepts by its public key alone; nobody else is asked.
token() {
  openssl genrsa -out registry.key 2048 && openssl rsa -in registry.key -pubout -out registry.pub || return 1
  local text
  text=$(encoded '{"alg":"RS256","typ":"JWT"}').$(encoded "{\"sub\":\"ctrip\",\"upn\":\"ctrip\",\"groups\":[\"sr-admin\"],\"iat\":$(date +%s),\"exp\":4102444800}")
  printf '%s.%s\n' "$text" "$(printf %s "$text" | openssl dgst -sha256 -sign registry.key | base64url)"
}

encoded() { printf %s "$1" | base64url; }

base64url() { openssl base64 -A | tr '+/' '-_' | tr -d '='; }

password_of() { cat "$DATA/secure/$1.password"; }

# Listeners and TLS of Kafka's server.properties. The broker itself uses the port for certificates.
secure_kafka_settings() {
  cat <<-END
	listeners=SASL_SSL://127.0.0.1:$KAFKA_PORT,SSL://127.0.0.1:$KAFKA_SASL_PORT,CONTROLLER://127.0.0.1:$CONTROLLER_PORT
	controller.listener.names=CONTROLLER
	listener.security.protocol.map=SASL_SSL:SASL_SSL,SSL:SSL,CONTROLLER:SSL
	inter.broker.listener.name=SSL
	ssl.keystore.type=PEM
	ssl.keystore.location=$DATA/secure/server.both
	ssl.truststore.type=PEM
	ssl.truststore.location=$DATA/secure/ca.pem
	ssl.client.auth=required
	listener.name.sasl_ssl.ssl.client.auth=none
	ssl.principal.mapping.rules=RULE:^CN=([^,]*).*\$/\$1/,DEFAULT

	authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
	super.users=User:server;User:admin
	sasl.enabled.mechanisms=SCRAM-SHA-512
	listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
	END
}

# Arguments of the formatting, one a line: the users.
secure_kafka_users() {
  local user
  for user in admin "${KAFKA_USERS[@]}"; do printf -- '--add-scram\nSCRAM-SHA-512=[name=%s,password=%s]\n' "$user" "$(password_of "$user")"; done
}

# Prints the variables with which cTrip reaches the stack, as admin. The folder has those of the roles.
secure_env() {
  local ca=$DATA/secure/ca.pem
  printf 'DATABASE_URL=postgres://ctrip:%s@127.0.0.1:%s/ctrip?sslmode=verify-full&sslrootcert=%s\n' \
    "$(password_of ctrip)" "$POSTGRES_PORT" "$ca"
  printf 'KAFKA_BROKERS=127.0.0.1:%s\n' "$KAFKA_PORT"
  printf 'KAFKA_SECURITY_PROTOCOL=sasl_ssl\nKAFKA_SASL_MECHANISM=SCRAM-SHA-512\nKAFKA_SASL_USERNAME=admin\n'
  printf 'KAFKA_SASL_PASSWORD=%s\nKAFKA_SSL_CA_LOCATION=%s\n' "$(password_of admin)" "$ca"
  printf 'KAFKA_MTLS_BROKERS=127.0.0.1:%s\n' "$KAFKA_SASL_PORT"
  printf 'SCHEMA_REGISTRY_URL=https://127.0.0.1:%s/apis/ccompat/v7\n' "$REGISTRY_PORT"
  printf 'SCHEMA_REGISTRY_CA_LOCATION=%s\nSCHEMA_REGISTRY_TOKEN=%s\n' "$ca" "$(cat "$DATA/secure/token")"
  printf 'CTRIP_STACK_SECRETS=%s\n' "$DATA/secure"
}
