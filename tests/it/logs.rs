//! The log of the real program: one JSON object a line, whatever is sent to it, and never a secret or a payload.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::Utc;
use reqwest::Url;
use serde_json::{Value, json};
use subledger::secret::Secret;
use subledger::stripe::signature::sign;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::Event;
use crate::support::database::Database;
use crate::support::events::subscription;

const WEBHOOK_SECRET: &str = "whsec_never_to_be_seen";
const ADMIN_TOKEN: &str = "token-never-to-be-seen";
const STRIPE_KEY: &str = "sk_test_never_to_be_seen";

/// The program, started as an operator would.
struct Program {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    base: Url,
    http: reqwest::Client,
    database: Database,
}

impl Program {
    async fn start(log_format: &str, rust_log: &str) -> Self {
        // Fails where it is installed already.
        rustls::crypto::ring::default_provider().install_default().ok();
        let database = Database::migrated();
        let mut child = Command::new(env!("CARGO_BIN_EXE_subledger"))
            .env_clear()
            .env("DATABASE_URL", database.url())
            .env("BIND_ADDR", "127.0.0.1:0")
            .env("STRIPE_WEBHOOK_SECRET", WEBHOOK_SECRET)
            .env("STRIPE_SECRET_KEY", STRIPE_KEY)
            .env("STRIPE_API_BASE", "http://127.0.0.1:9")
            .env("ADMIN_TOKEN", ADMIN_TOKEN)
            .env("LOG_FORMAT", log_format)
            .env("RUST_LOG", rust_log)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let sink = lines.clone();
        std::thread::spawn(move || stderr.lines().for_each(|line| sink.lock().unwrap().push(line.unwrap())));
        let mut program =
            Self { child, lines, base: "http://unknown".parse().unwrap(), http: reqwest::Client::new(), database };
        program.base = program.wait_for("listening on ").await;
        program
    }

    async fn wait_for(&self, word: &str) -> Url {
        for _ in 0..1_000 {
            if let Some(line) =
                self.lines().iter().find_map(|line| line.split_once(word).map(|(_, rest)| rest.to_owned()))
            {
                return line.split(['"', ' ']).next().unwrap().parse().unwrap();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{word:?} is not in {:#?}", self.lines());
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Every entry, each line being one.
    fn entries(&self) -> Vec<Value> {
        let parse = |line: &String| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        self.lines().iter().map(parse).collect()
    }

    /// Delivers, and returns the status and the request id of the answer.
    async fn deliver(&self, event: &Event) -> (u16, String) {
        let body = event.to_string();
        let signature = sign(body.as_bytes(), &Secret::new(WEBHOOK_SECRET), Utc::now().timestamp());
        self.post(body, &signature).await
    }

    async fn post(&self, body: String, signature: &str) -> (u16, String) {
        let request = self.http.post(self.base.join("/api/v1/webhooks/stripe").unwrap());
        let request = request.header("Stripe-Signature", signature).header("X-Request-Id", "forged-request-id");
        let response = request.body(body).send().await.unwrap();
        let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
        (response.status().as_u16(), id)
    }

    async fn sql(&self, statement: &str) {
        self.database.client().await.batch_execute(statement).await.unwrap();
    }

    /// The entries about one request, once there are any.
    async fn about(&self, request_id: &str) -> Vec<Value> {
        for _ in 0..100 {
            let about: Vec<_> = self.entries().into_iter().filter(|entry| entry["request_id"] == request_id).collect();
            if !about.is_empty() {
                return about;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("nothing about {request_id} in {:#?}", self.lines());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn updated(id: &str, seats: i64) -> Event {
    let mut object = subscription("sub_1", "cus_1", "active", seats);
    object["metadata"] = json!({"note": "payload-never-to-be-seen"});
    Event::new(id, "customer.subscription.updated", 1_760_000_000, object)
}

fn sorted_keys(entry: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = entry.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_is_one_line_with_all_that_matters() {
    let program = Program::start("json", "info").await;
    program.sql("INSERT INTO accounts (stripe_customer_id) VALUES ('cus_1')").await;
    let event = updated("evt_1", 1);
    for outcome in ["applied", "duplicate"] {
        let (status, request_id) = program.deliver(&event).await;
        assert_eq!(status, 200);
        let about = program.about(&request_id).await;
        let [entry] = about.as_slice() else { panic!("{about:#?}") };
        let keys = ["event_id", "event_type", "level", "message", "millis", "outcome", "request_id", "target", "time"];
        assert_eq!(sorted_keys(entry), keys);
        assert_eq!(
            [&entry["event_id"], &entry["event_type"], &entry["outcome"], &entry["level"], &entry["message"]],
            ["evt_1", "customer.subscription.updated", outcome, "info", "delivery"]
        );
        assert!(entry["millis"].as_u64().is_some_and(|millis| millis < 60_000), "{entry}");
        assert!(chrono::DateTime::parse_from_rfc3339(entry["time"].as_str().unwrap()).is_ok(), "{entry}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_one_line_with_every_cause() {
    let program = Program::start("json", "info").await;
    program
        .sql(
            "INSERT INTO accounts (stripe_customer_id) VALUES ('cus_1');
             ALTER TABLE subscriptions ADD CONSTRAINT few_seats CHECK (seat_limit < 5)",
        )
        .await;
    let (status, request_id) = program.deliver(&updated("evt_1", 5)).await;
    assert_eq!(status, 500);
    let about = program.about(&request_id).await;
    let [entry] = about.as_slice() else { panic!("{about:#?}") };
    assert_eq!([&entry["level"], &entry["event_id"]], ["error", "evt_1"]);
    let message = entry["message"].as_str().unwrap();
    assert!(message.starts_with("delivery failed: a statement failed: "), "{message}");
    assert!(message.contains("few_seats"), "{message}");

    // What an admin asks for may fail too.
    program.sql("ALTER TABLE stripe_events RENAME TO gone").await;
    for path in ["/events", "/events/evt_1", "/events/evt_1/replay"] {
        let url = program.base.join(path).unwrap();
        let request = if path.ends_with("replay") { program.http.post(url) } else { program.http.get(url) };
        let response = request.bearer_auth(ADMIN_TOKEN).send().await.unwrap();
        assert_eq!(response.status(), 500, "{path}");
        let about = program.about(response.headers()["x-request-id"].to_str().unwrap()).await;
        let [entry] = about.as_slice() else { panic!("{about:#?}") };
        assert!(entry["message"].as_str().unwrap().contains("stripe_events"), "{entry}");
    }
    // Stripe is out of reach.
    program.sql("ALTER TABLE gone RENAME TO stripe_events").await;
    let mut session = crate::support::events::checkout("cus_1", "sub_1", None);
    session["metadata"] = json!({"note": "payload-never-to-be-seen"});
    let (status, request_id) = program.deliver(&Event::new("evt_2", "checkout.session.completed", 100, session)).await;
    assert_eq!(status, 503);
    let message = program.about(&request_id).await[0]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("cannot ask Stripe for sub_1: Stripe's API did not answer: "), "{message}");
    assert!(message.to_lowercase().contains("refused"), "to the last cause: {message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_sent_can_forge_a_line() {
    for log_format in ["json", "text"] {
        let program = Program::start(log_format, "info").await;
        let forged = "evt_1\n{\"level\":\"error\",\"message\":\"forged\"}\r\u{1b}[2J\u{85}\u{2028}";
        let mut event = updated(forged, 1);
        event.0["type"] = json!("customer\nforged=1");
        event.0["data"]["object"]["customer"] = json!("cus\nforged");
        let (status, request_id) = program.deliver(&event).await;
        assert_eq!(status, 200);
        let mut failing = updated("evt_2\nforged", 1);
        failing.0["created"] = json!("no time");
        program.sql("INSERT INTO accounts (stripe_customer_id) VALUES ('cus_1')").await;
        assert_eq!(program.deliver(&failing).await.0, 500);

        // Paths, queries and headers of anybody.
        let forged_path = "/events/x%0A%7B%22forged%22:1%7D?a=%0Aforged";
        let url = program.base.join(forged_path).unwrap();
        let response = program.http.get(url.clone()).header("User-Agent", "forged-agent").send().await.unwrap();
        assert_eq!(response.status(), 401);
        let response = program.http.post(url).bearer_auth(ADMIN_TOKEN).send().await.unwrap();
        assert_eq!(response.status(), 405);
        assert_eq!(program.post("{}".to_owned(), "t=1,v1=forged-signature").await.0, 400);
        let mut stream = tokio::net::TcpStream::connect(program.base.socket_addrs(|| None).unwrap()[0]).await.unwrap();
        stream.write_all(b"GET /\x1b[2Jforged HTTP/1.1\r\nA: b\nforged\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.ok();

        tokio::time::sleep(Duration::from_millis(200)).await;
        let lines = program.lines();
        assert!(lines.iter().any(|line| line.contains(&request_id)), "{lines:#?}");
        for line in &lines {
            let is_entry = match log_format {
                "json" => serde_json::from_str::<Value>(line).is_ok_and(|entry| entry["message"] != "forged"),
                _ => chrono::DateTime::parse_from_rfc3339(line.split(' ').next().unwrap()).is_ok(),
            };
            assert!(is_entry, "{line}");
            let is_plain = !line.contains(|char: char| char.is_control() || char == '\u{2028}');
            assert!(is_plain, "{line:?}");
            for word in ["forged-agent", "forged-signature", "forged-request-id", "/events/x"] {
                assert!(!line.contains(word), "{line}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_and_payloads_are_never_logged_however_much_is() {
    let program = Program::start("json", "trace").await;
    program.sql("INSERT INTO accounts (stripe_customer_id) VALUES ('cus_1')").await;
    assert_eq!(program.deliver(&updated("evt_1", 1)).await.0, 200);
    let mut session = crate::support::events::checkout("cus_1", "sub_1", None);
    session["metadata"] = json!({"note": "payload-never-to-be-seen"});
    assert_eq!(program.deliver(&Event::new("evt_2", "checkout.session.completed", 100, session)).await.0, 503);
    for event in ["evt_1", "evt_2"] {
        let url = program.base.join(&format!("/events/{event}")).unwrap();
        let response = program.http.get(url).bearer_auth(ADMIN_TOKEN).send().await.unwrap();
        assert!(response.text().await.unwrap().contains("payload-never-to-be-seen"));
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let entries = program.entries();
    assert!(entries.iter().any(|entry| entry["message"] == "delivery"), "{entries:#?}");
    for entry in &entries {
        // Bytes are sometimes logged as a list of numbers.
        for word in ["never-to-be-seen", "never_to_be_seen", "110, 101, 118, 101, 114"] {
            assert!(!entry.to_string().contains(word), "{entry}");
        }
    }
}
