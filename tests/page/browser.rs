//! A headless Chromium, driven through chromedriver: WebDriver is JSON over HTTP.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

/// The names that a browser has.
const BROWSERS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "chrome"];

/// Flags with which a browser opens a page and does nothing else, also as root.
const FLAGS: [&str; 10] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
];

/// A page whose script takes longer than this has stopped with an error.
const READY: Duration = Duration::from_secs(20);

/// What a key sends.
pub const ENTER: &str = "\u{e007}";
pub const LEFT: &str = "\u{e012}";
pub const RIGHT: &str = "\u{e014}";
pub const DOWN: &str = "\u{e015}";

/// One window. The driver and the browser end with it.
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _profile: tempfile::TempDir,
}

/// A program in `PATH`.
fn program(names: &[&str]) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let all = names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    all.into_iter().find(|path| path.is_file()).unwrap_or_else(|| {
        panic!("there is no {} to open pages with; run: scripts/setup.sh --tests", names[0])
    })
}

impl Browser {
    /// A window of that many pixels.
    pub fn open(width: u32, height: u32) -> Browser {
        let browser = program(&BROWSERS);
        let mut driver = Command::new(program(&["chromedriver"]))
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let port = port_of(&mut driver);
        let profile = tempfile::tempdir().unwrap();
        let mut flags: Vec<String> = FLAGS.map(str::to_string).to_vec();
        flags.push(format!("--window-size={width},{height}"));
        flags.push(format!("--user-data-dir={}", profile.path().display()));
        let mut own = Browser { driver, port, session: String::new(), _profile: profile };
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"binary": browser, "args": flags},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let opened = own.send("POST", "/session", &wanted);
        own.session = opened["sessionId"].as_str().unwrap().to_string();
        own.size(width, height);
        own
    }

    /// Asks the driver, and gives the value of its answer.
    fn send(&self, method: &str, path: &str, body: &Value) -> Value {
        let value = self.exchange(method, path, body).unwrap();
        assert!(value.get("error").is_none(), "{method} {path} {body}: {value}");
        value
    }

    fn exchange(&self, method: &str, path: &str, body: &Value) -> io::Result<Value> {
        let text = if method == "GET" { String::new() } else { body.to_string() };
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let length = text.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n{text}"
        )?;
        let mut reader = BufReader::new(stream);
        let (mut line, mut length) = (String::new(), 0);
        while reader.read_line(&mut line)? > 0 && line.trim() != "" {
            if let Some(own) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = own.trim().parse().map_err(io::Error::other)?;
            }
            line.clear();
        }
        let mut answer = vec![0; length];
        reader.read_exact(&mut answer)?;
        let answer: Value = serde_json::from_slice(&answer)?;
        Ok(answer["value"].clone())
    }

    fn ask(&self, path: &str, body: &Value) -> Value {
        self.send("POST", &format!("/session/{}/{path}", self.session), body)
    }

    /// Opens a file, and gives how long that took until its script was through.
    pub fn load(&self, page: &Path) -> Duration {
        let start = Instant::now();
        self.ask("url", &json!({"url": format!("file://{}", encoded(page))}));
        // On a busy machine the driver may answer before the page's script is through.
        while self.script("return document.documentElement.dataset.ready") != json!("yes") {
            assert!(start.elapsed() < READY, "{:?}", self.complaints());
            thread::sleep(Duration::from_millis(10));
        }
        start.elapsed()
    }

    /// The value that a function body returns.
    pub fn script(&self, body: &str) -> Value {
        self.ask("execute/sync", &json!({"script": body, "args": []}))
    }

    /// The text of the first element of a selector, as it is seen.
    pub fn text(&self, selector: &str) -> String {
        let body = format!("return document.querySelector({}).innerText", json!(selector));
        self.script(&body).as_str().unwrap_or_else(|| panic!("no {selector}")).to_string()
    }

    /// How many elements a selector has.
    pub fn count(&self, selector: &str) -> u64 {
        let body = format!("return document.querySelectorAll({}).length", json!(selector));
        self.script(&body).as_u64().unwrap()
    }

    fn element(&self, selector: &str) -> String {
        let found = self.ask("element", &json!({"using": "css selector", "value": selector}));
        found.as_object().unwrap().values().next().unwrap().as_str().unwrap().to_string()
    }

    /// Clicks on an element, as a user does: it must be there to be seen.
    pub fn click(&self, selector: &str) {
        self.ask(&format!("element/{}/click", self.element(selector)), &json!({}));
    }

    /// Types keys into whatever has the focus.
    pub fn keys(&self, keys: &str) {
        let focused =
            self.send("GET", &format!("/session/{}/element/active", self.session), &json!({}));
        let id =
            focused.as_object().unwrap().values().next().unwrap().as_str().unwrap().to_string();
        self.ask(&format!("element/{id}/value"), &json!({"text": keys}));
    }

    /// A command of the browser's own protocol.
    pub fn devtools(&self, command: &str, params: &Value) -> Value {
        self.ask("goog/cdp/execute", &json!({"cmd": command, "params": params}))
    }

    /// What the system prefers: `light` or `dark`.
    pub fn prefer(&self, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.devtools("Emulation.setEmulatedMedia", &json!({"features": features}));
        // The page hears of it before it is drawn the next time.
        let drawn = "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))";
        self.ask("execute/async", &json!({"script": drawn, "args": []}));
    }

    pub fn size(&self, width: u32, height: u32) {
        self.ask("window/rect", &json!({"width": width, "height": height}));
    }

    /// Errors and warnings of the console since the last call.
    pub fn complaints(&self) -> Vec<String> {
        let log = self.ask("se/log", &json!({"type": "browser"}));
        let lines = log.as_array().unwrap().iter();
        let bad = lines.filter(|line| line["level"] == "SEVERE" || line["level"] == "WARNING");
        bad.map(|line| line["message"].to_string()).collect()
    }

    /// Writes what the whole page looks like to `target/pages/NAME.png`.
    pub fn picture(&self, name: &str) {
        let height = self.script("return document.documentElement.scrollHeight").as_u64().unwrap();
        let width = self.script("return window.innerWidth").as_u64().unwrap();
        let clip = json!({"x": 0, "y": 0, "width": width, "height": height, "scale": 1});
        let shot = self.devtools(
            "Page.captureScreenshot",
            &json!({"format": "png", "captureBeyondViewport": true, "clip": clip}),
        );
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/pages");
        std::fs::create_dir_all(&folder).unwrap();
        let bytes = STANDARD.decode(shot["data"].as_str().unwrap()).unwrap();
        std::fs::write(folder.join(format!("{name}.png")), bytes).unwrap();
    }

    /// What a screen reader is told of a role without a name, over the whole page.
    pub fn nameless(&self, roles: &[&str]) -> Vec<String> {
        self.devtools("Accessibility.enable", &json!({}));
        let tree = self.devtools("Accessibility.getFullAXTree", &json!({}));
        let nodes = tree["nodes"].as_array().unwrap().iter();
        let is_asked = |node: &&Value| {
            node["ignored"] != json!(true)
                && roles.contains(&node["role"]["value"].as_str().unwrap_or_default())
        };
        let asked: Vec<&Value> = nodes.filter(is_asked).collect();
        assert!(asked.len() > 5, "{} roles are too few for a page", asked.len());
        let name =
            |node: &&&Value| node["name"]["value"].as_str().unwrap_or_default().trim().is_empty();
        asked.iter().filter(name).map(ToString::to_string).collect()
    }
}

/// The driver's own port, which it says in its first lines.
fn port_of(driver: &mut Child) -> u16 {
    let mut out = BufReader::new(driver.stdout.take().unwrap());
    let mut line = String::new();
    while out.read_line(&mut line).unwrap() > 0 {
        let number = line.trim_end().trim_end_matches('.').rsplit("port ").next();
        if let Some(port) = number.filter(|_| line.contains("started")).and_then(|n| n.parse().ok())
        {
            // What it says later goes nowhere, and must not stop it.
            std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
            return port;
        }
        line.clear();
    }
    panic!("chromedriver ended early; run: scripts/setup.sh --tests")
}

/// A path as a part of an address.
fn encoded(path: &Path) -> String {
    let text = path.to_str().unwrap();
    let byte = |byte: u8| match byte {
        b'/' | b'-' | b'_' | b'.' => (byte as char).to_string(),
        byte if byte.is_ascii_alphanumeric() => (byte as char).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

impl Drop for Browser {
    /// Closes the browser, also after a failure: a driver that is only killed leaves it running.
    fn drop(&mut self) {
        if !self.session.is_empty() {
            let _ = self.exchange("DELETE", &format!("/session/{}", self.session), &json!({}));
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
