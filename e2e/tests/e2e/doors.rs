//! The doors of Kafka, Postgres and the registry: on a stack with TLS and logins each role runs with a user of its own, with the rights
//! that `ctrip acl print` prints, and no role runs with another's.

use anyhow::{Context as _, Result, ensure};
use axum::Router;
use axum::routing::post;
use e2e::{Lab, Plan, Process, Stack, eventually};
use reqwest::Method;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use topics::U256;

const ROLES: [&str; 5] = ["api", "ingest", "detector", "confirmer", "webhooks"];
/// How many Java programs run at once.
const TOOLS: usize = 4;

/// Runs the script that `ctrip acl print` prints, several of Kafka's tools at once.
fn apply_acls(lab: &Lab, folder: &Path, secrets: &Path) -> Result<()> {
    let properties = folder.join("admin.properties");
    let text = format!(
        "security.protocol=SASL_SSL\nsasl.mechanism=SCRAM-SHA-512\nssl.truststore.type=PEM\nssl.truststore.location={}\n\
         sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required username=admin password=\"{}\";\n",
        lab.env["KAFKA_SSL_CA_LOCATION"], lab.env["KAFKA_SASL_PASSWORD"]
    );
    std::fs::write(&properties, text)?;
    let tools = lab.stack.kafka_tools(folder)?;
    let run = |script: &str| -> Result<()> {
        let output = Command::new("sh")
            .args(["-c", script])
            .envs(&lab.env)
            .envs(tools.iter().cloned())
            .env("KAFKA_COMMAND_CONFIG", &properties)
            .output()?;
        let (said, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        // Kafka's tool exits with 0 even when it failed.
        let resources = [" --topic ", " --group ", " --transactional-id "].map(|flag| script.matches(flag).count());
        let resources: usize = resources.iter().sum();
        ensure!(output.status.success() && said.matches("Adding ACLs").count() == resources, "{script}\n{said}{failed}");
        Ok(())
    };
    let script = lab.ctrip(&["acl", "print", "--only", "kafka"])?;
    // Nobody is the operator here.
    let script = script.lines().filter(|line| !line.contains("User:operator"));
    let (head, commands): (Vec<&str>, Vec<&str>) = script.partition(|line| !line.starts_with("acl --"));
    let mut scripts = vec![head.join("\n") + "\n"; TOOLS];
    for (place, command) in commands.iter().enumerate() {
        scripts[place % TOOLS].push_str(command);
        scripts[place % TOOLS].push('\n');
    }
    let mut sql = lab.ctrip(&["acl", "print", "--only", "sql"])?;
    for role in ["api", "confirmer", "webhooks"] {
        let password = std::fs::read_to_string(secrets.join(format!("{role}.password")))?;
        sql = sql.replace("COMMIT;", &format!("ALTER ROLE ctrip_{role} PASSWORD '{}';\nCOMMIT;", password.trim()));
    }
    scripts.push(sql);
    std::thread::scope(|scope| {
        let running: Vec<_> = scripts.iter().map(|script| scope.spawn(|| run(script))).collect();
        running.into_iter().try_for_each(|script| script.join().map_err(|_| anyhow::anyhow!("a script panicked"))?)
    })
}

/// The environment of a process with the logins of a user. That of webhooks is its certificate.
fn log_in(
    lab: &Lab,
    admin: &BTreeMap<String, String>,
    user: &str,
    folder: &Path,
    secrets: &Path,
) -> Result<BTreeMap<String, String>> {
    let mut env = admin.clone();
    let mut set = |name: &str, value: String| env.insert(name.to_owned(), value);
    let file = |name: String| secrets.join(name).display().to_string();
    if user == "webhooks" {
        set("KAFKA_BROKERS", lab.stack.get("KAFKA_MTLS_BROKERS")?.to_owned());
        set("KAFKA_SECURITY_PROTOCOL", "ssl".to_owned());
        set("KAFKA_SSL_CERTIFICATE_LOCATION", file(format!("{user}.pem")));
        set("KAFKA_SSL_KEY_LOCATION", file(format!("{user}.key")));
    } else {
        set("KAFKA_SASL_USERNAME", user.to_owned());
        set("KAFKA_SASL_PASSWORD_FILE", file(format!("{user}.password")));
    }
    set("SCHEMA_REGISTRY_TOKEN_FILE", file("token".to_owned()));
    if ["api", "confirmer", "webhooks"].contains(&user) {
        let (_, place) = admin["DATABASE_URL"].split_once('@').context("DATABASE_URL names no user")?;
        let password = std::fs::read_to_string(secrets.join(format!("{user}.password")))?;
        let url = folder.join(format!("{user}.url"));
        std::fs::write(&url, format!("postgres://ctrip_{user}:{}@{place}\n", password.trim()))?;
        set("DATABASE_URL_FILE", url.display().to_string());
    }
    // ingest and detector need no Postgres.
    for name in ["DATABASE_URL", "KAFKA_SASL_PASSWORD", "SCHEMA_REGISTRY_TOKEN"] {
        env.remove(name);
    }
    if user == "webhooks" {
        env.remove("KAFKA_SASL_USERNAME");
        env.remove("KAFKA_SASL_MECHANISM");
    }
    Ok(env)
}

/// A server of a merchant, and the messages that it was sent.
async fn receiver() -> Result<(String, Arc<Mutex<Vec<String>>>)> {
    let messages = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&messages);
    let receive = move |body: String| async move {
        if let Ok(mut heard) = heard.lock() {
            heard.push(body);
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/", post(receive))).await });
    Ok((url, messages))
}

/// What the processes of a folder have written.
fn logs(folder: &Path) -> Result<String> {
    let mut text = String::new();
    for file in std::fs::read_dir(folder)? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            text += &std::fs::read_to_string(path)?;
        }
    }
    Ok(text)
}

/// Nobody who has a role's password leads money or messages elsewhere, makes a key, or acts with the owner's rights.
async fn refuses_what_no_role_does(folder: &Path) -> Result<()> {
    let connect = |user: &str| {
        let url = std::fs::read_to_string(folder.join(format!("{user}.url")));
        async move { Ok::<_, anyhow::Error>(runtime::db::Primary::of(url?.trim())?.open().await?.0) }
    };
    let (api, confirmer, webhooks) = (connect("api").await?, connect("confirmer").await?, connect("webhooks").await?);
    for (user, statement) in [
        (&api, "CREATE FUNCTION public.right(name, integer) RETURNS text LANGUAGE sql AS $$ SELECT '2026_01' $$"),
        (&api, "UPDATE merchants SET xpub = NULL"),
        (&api, "UPDATE api_keys SET scope = 'write'"),
        (&api, "UPDATE deposit_addresses SET address = address"),
        (&confirmer, "UPDATE merchants SET xpub = NULL"),
        (&confirmer, "UPDATE xpubs SET xpub = NULL"),
        (&confirmer, "SELECT drop_payment_events_before(now())"),
        (&webhooks, "UPDATE webhook_endpoints SET url = 'https://elsewhere'"),
        (&webhooks, "SELECT make_address_sequence('00ff')"),
    ] {
        let refused = user.batch_execute(statement).await.err();
        let code = refused.as_ref().and_then(|error| error.code()).map(|code| code.code());
        ensure!(code == Some("42501"), "{statement}: {refused:?}");
    }
    // An account's sequence is for both, whoever of them met it first.
    for (maker, other, fingerprint) in [(&confirmer, &api, "00ff"), (&api, &confirmer, "00fe")] {
        maker.batch_execute(&format!("SELECT make_address_sequence('{fingerprint}')")).await?;
        let sequence = format!("address_index_{fingerprint}");
        other.batch_execute(&format!("SELECT last_value FROM {sequence}; SELECT nextval('{sequence}')")).await?;
    }
    let hex = api.batch_execute("SELECT make_address_sequence('x; DROP TABLE payments')").await;
    ensure!(hex.is_err(), "it is no fingerprint");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_has_the_rights_that_it_needs_and_none_of_anothers() -> Result<()> {
    let data = tempfile::tempdir()?;
    let stack = Stack::secure(data.path())?;
    let purge = stack.clone();
    let outcome = rights(stack, data.path()).await;
    let kept = if outcome.is_err() { purge.keep_logs("doors") } else { Ok(()) };
    purge.purge()?;
    outcome.and(kept)
}

async fn rights(stack: Stack, folder: &Path) -> Result<()> {
    let secrets = PathBuf::from(stack.get("CTRIP_STACK_SECRETS")?);
    let mut lab = Lab::on(stack, Plan::default()).await?;
    apply_acls(&lab, folder, &secrets)?;
    let (url, messages) = receiver().await?;
    lab.env.insert("WEBHOOK_ALLOW_HTTP".to_owned(), "true".to_owned());
    lab.env.insert("WEBHOOK_ALLOW_NETWORKS".to_owned(), "127.0.0.0/8".to_owned());
    let admin = lab.env.clone();
    let shop = lab.merchant("shop")?;

    // One payment, from its creation to its webhook.
    let mut running = Vec::new();
    for role in ROLES {
        lab.env = log_in(&lab, &admin, role, folder, &secrets)?;
        running.push(lab.spawn(role)?);
    }
    shop.ready(&mut running[0]).await?;
    let hook = json!({ "url": url, "events": ["payment.confirmed"] });
    let (status, answer) = shop.request(Method::POST, "/api/v1/webhooks", Some(hook), &[]).await?;
    ensure!(status.is_success(), "{status} {answer}");
    let payment = shop.coin(7).await?;
    lab.node.pay(payment.address()?, U256::from(7)).await?;
    lab.node.mine(3).await?;
    let confirmed = shop.until(payment.id(), "confirmed").await;
    for process in &mut running {
        process.check()?;
    }
    confirmed.with_context(|| logs(&lab.dir).unwrap_or_default())?;
    let told = eventually("the webhook", || async { Ok(messages.lock().ok().and_then(|heard| heard.first().cloned())) });
    let told = told.await?;
    ensure!(told.contains(payment.id()), "{told}");
    for process in &mut running {
        ensure!(process.terminate()?.success(), "{}", process.tail());
    }

    refuses_what_no_role_does(folder).await?;

    // No role with another's login.
    let served = lab.dir.clone();
    lab.dir = served.join("refused");
    std::fs::create_dir_all(&lab.dir)?;
    let mut refused: Vec<Process> = Vec::new();
    for (role, user) in
        [("ingest", "detector"), ("detector", "ingest"), ("confirmer", "api"), ("webhooks", "confirmer"), ("api", "webhooks")]
    {
        lab.env = log_in(&lab, &admin, user, folder, &secrets)?;
        refused.push(lab.spawn(role)?);
    }
    for process in &mut refused {
        // ingest keeps a chain that it can't follow, and tries again.
        let told = eventually("a refusal", || async {
            let said = process.log();
            let is_refused = said.contains("`ctrip acl print` lists") || said.contains("permission denied for table");
            Ok(is_refused.then_some(()))
        });
        told.await.with_context(|| process.role.clone())?;
    }
    drop(refused);

    // Nor anybody with a wrong one, and no secret is ever shown.
    for (name, wrong) in [
        ("KAFKA_SASL_PASSWORD", "hunter2".to_owned()),
        ("DATABASE_URL", admin["DATABASE_URL"].replacen("ctrip:", "ctrip:hunter2", 1)),
        ("SCHEMA_REGISTRY_TOKEN", "hunter2".to_owned()),
    ] {
        lab.env = admin.clone();
        lab.env.insert(name.to_owned(), wrong);
        let output = lab.output(&["confirmer"])?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && said.contains(name), "{name}: {said}");
        std::fs::write(lab.dir.join(format!("{name}.log")), &*said)?;
    }
    let shown = logs(&served)? + &logs(&lab.dir)?;
    ensure!(!shown.contains("hunter2"), "{shown}");
    for file in std::fs::read_dir(&secrets)? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "password") || path.ends_with("token") {
            let secret = std::fs::read_to_string(&path)?;
            ensure!(!shown.contains(secret.trim()), "the logs show {}", path.display());
        }
    }
    Ok(())
}
