//! A real browser, driven by the WebDriver protocol: Debian's `chromium` and `chromium-driver`.
//!
//! Source: <https://www.w3.org/TR/webdriver2/>, and for `goog/cdp` Chrome's DevTools protocol.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use reqwest::{Client, Method, Url};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How an element is named in the protocol.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// How long a page may take to be as it should.
const PATIENCE: Duration = Duration::from_secs(20);

pub const TAB: &str = "\u{E004}";
pub const ENTER: &str = "\u{E007}";

/// A browser with an empty profile. It ends with this value.
pub struct Browser {
    session: String,
    http: Client,
    _driver: Driver,
    _profile: TempDir,
}

/// It is killed with this value.
struct Driver(Child);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Browser {
    /// A browser; `None`, said aloud, where none is installed. There it is a failure only if `CI` is set.
    pub async fn start() -> Option<Self> {
        let profile = tempfile::tempdir().unwrap();
        let mut command = Command::new("chromedriver");
        command.args(["--port=0", "--log-level=SEVERE"]).stdout(Stdio::piped()).stderr(Stdio::null());
        let Ok(driver) = command.spawn() else {
            absent();
            return None;
        };
        let mut driver = Driver(driver);
        let port = port(&mut driver.0);
        // Fails where it is installed already.
        rustls::crypto::ring::default_provider().install_default().ok();
        let http = Client::new();
        let root = format!("http://127.0.0.1:{port}/session");
        let started = http.post(&root).json(&capabilities(profile.path())).send().await.unwrap();
        let started: Value = serde_json::from_str(&started.text().await.unwrap()).unwrap();
        let id = started["value"]["sessionId"].as_str();
        let id = id.unwrap_or_else(|| panic!("chromedriver starts no browser: {started}"));
        Some(Self { session: format!("{root}/{id}"), http, _driver: driver, _profile: profile })
    }

    async fn call(&self, method: Method, path: &str, body: Value) -> Result<Value, Value> {
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.session));
        if method == Method::POST {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        let is_success = response.status().is_success();
        let mut answer: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        if is_success { Ok(answer["value"].take()) } else { Err(answer["value"].take()) }
    }

    #[track_caller]
    fn post(&self, path: &str, body: Value) -> impl Future<Output = Value> {
        let (path, caller) = (path.to_owned(), std::panic::Location::caller());
        async move {
            let answer = self.call(Method::POST, &path, body).await;
            answer.unwrap_or_else(|error| panic!("{caller}: {path}: {}", error["message"]))
        }
    }

    async fn get(&self, path: &str) -> Value {
        self.call(Method::GET, path, Value::Null).await.unwrap()
    }

    pub async fn open(&self, url: Url) {
        self.post("/url", json!({"url": url.as_str()})).await;
    }

    pub async fn url(&self) -> Url {
        self.get("/url").await.as_str().unwrap().parse().unwrap()
    }

    pub async fn title(&self) -> String {
        self.get("/title").await.as_str().unwrap().to_owned()
    }

    /// Whether an `alert` is open.
    pub async fn has_alert(&self) -> bool {
        self.call(Method::GET, "/alert/text", Value::Null).await.is_ok()
    }

    /// What a function's body returns.
    #[track_caller]
    pub fn run(&self, script: &str) -> impl Future<Output = Value> {
        self.post("/execute/sync", json!({"script": script, "args": []}))
    }

    /// Waits until an expression is true.
    #[track_caller]
    pub fn until(&self, expression: &str) -> impl Future<Output = ()> {
        let (expression, caller) = (expression.to_owned(), std::panic::Location::caller());
        async move {
            let started = Instant::now();
            let script = json!({"script": format!("return !!({expression})"), "args": []});
            // While a page is being left there is none to ask.
            while self.call(Method::POST, "/execute/sync", script.clone()).await != Ok(Value::Bool(true)) {
                if started.elapsed() > PATIENCE {
                    let text = self.text("body").await;
                    panic!("{caller}: not within {PATIENCE:?}: {expression}\n{text}");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    async fn element(&self, selector: &str) -> String {
        let found = self.post("/element", json!({"using": "css selector", "value": selector})).await;
        found[ELEMENT].as_str().unwrap().to_owned()
    }

    pub async fn click(&self, selector: &str) {
        let element = self.element(selector).await;
        self.post(&format!("/element/{element}/click"), json!({})).await;
    }

    pub async fn type_into(&self, selector: &str, text: &str) {
        let element = self.element(selector).await;
        self.post(&format!("/element/{element}/value"), json!({"text": text})).await;
    }

    pub async fn text(&self, selector: &str) -> String {
        let element = self.element(selector).await;
        self.get(&format!("/element/{element}/text")).await.as_str().unwrap().to_owned()
    }

    /// Presses keys, whatever has the focus.
    pub async fn press(&self, keys: &str) {
        let strokes = keys.chars().flat_map(|key| {
            [json!({"type": "keyDown", "value": key.to_string()}), json!({"type": "keyUp", "value": key.to_string()})]
        });
        let actions: Vec<_> = strokes.collect();
        self.post("/actions", json!({"actions": [{"type": "key", "id": "keys", "actions": actions}]})).await;
    }

    /// Presses the tab key until the element has the focus; returns how often.
    #[track_caller]
    pub fn tab_to(&self, selector: &str) -> impl Future<Output = usize> {
        let (selector, caller) = (selector.to_owned(), std::panic::Location::caller());
        async move {
            let has_focus = format!("return document.activeElement.matches({})", json!(selector));
            for pressed in 1..=60 {
                self.press(TAB).await;
                if self.run(&has_focus).await == true {
                    return pressed;
                }
            }
            panic!("{caller}: the tab key never leads to {selector}");
        }
    }

    async fn devtools(&self, command: &str, params: Value) -> Value {
        self.post("/goog/cdp/execute", json!({"cmd": command, "params": params})).await
    }

    /// Makes the window as wide as a device's, in CSS pixels.
    pub async fn be_wide(&self, width: u32) {
        let is_phone = width < 600;
        let height = if is_phone { 780 } else { 900 };
        let scale = if is_phone { 2 } else { 1 };
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": scale, "mobile": is_phone});
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// `light` or `dark`.
    pub async fn prefer(&self, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.devtools("Emulation.setEmulatedMedia", json!({"features": features})).await;
    }

    /// Saves the whole page as a PNG.
    pub async fn screenshot(&self, path: PathBuf) {
        let params = json!({"format": "png", "captureBeyondViewport": true});
        let shot = self.devtools("Page.captureScreenshot", params).await;
        let bytes = base64::engine::general_purpose::STANDARD.decode(shot["data"].as_str().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver closes the browser; killed before, it would leave it behind.
        let (http, session) = (self.http.clone(), self.session.clone());
        let close = async move { http.delete(session).send().await.map(drop).ok() };
        std::thread::spawn(|| tokio::runtime::Runtime::new().unwrap().block_on(close)).join().ok();
    }
}

fn absent() {
    let message = "SKIPPED: no chromedriver here, so the page was not tried in a browser \
                   (Debian: apt-get install chromium chromium-driver)";
    #[expect(clippy::disallowed_methods, reason = "what CI sets concerns the tests alone")]
    let is_ci = std::env::var_os("CI").is_some();
    assert!(!is_ci, "{message}");
    // Straight to the terminal: what a passing test prints is not shown.
    let mut terminal = std::io::stderr();
    writeln!(terminal, "{message}").unwrap();
}

fn port(driver: &mut Child) -> u16 {
    let lines = BufReader::new(driver.stdout.take().unwrap()).lines();
    let line = lines.map_while(Result::ok).find(|line| line.contains("started successfully on port"));
    let line = line.expect("chromedriver says on which port it listens");
    line.trim_end_matches('.').rsplit(' ').next().unwrap().parse().unwrap()
}

fn capabilities(profile: &Path) -> Value {
    let args = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-quic",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--hide-scrollbars",
        "--window-size=1280,900",
    ];
    let profile = format!("--user-data-dir={}", profile.display());
    let args: Vec<_> = args.into_iter().chain([profile.as_str()]).collect();
    json!({"capabilities": {"alwaysMatch": {
        "browserName": "chrome",
        "unhandledPromptBehavior": "ignore",
        "goog:chromeOptions": {"args": args},
    }}})
}
