//! llama.cpp's layers on RPC servers: two of them on this machine.

use std::{
    io::{BufRead, BufReader, Read},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use firstdiff::{core::tensor::Tensor, graph::site::Site, trace::TraceReader};
use tempfile::TempDir;

use crate::cli::{firstdiff, outcome, path, refused};

/// Nothing may take longer than this.
const LIMIT: Duration = Duration::from_secs(120);

/// A server, for as long as this lives.
struct RpcServer {
    child: Child,
    port: u16,
}

impl RpcServer {
    fn start() -> RpcServer {
        let port = free_port();
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("firstdiff"));
        command.args(["rpc-server", "--threads", "1", "--port", &port.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: a system call that a forked process may make: the server ends with this test.
        #[cfg(target_os = "linux")]
        unsafe {
            std::os::unix::process::CommandExt::pre_exec(&mut command, || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let server = RpcServer { child: command.spawn().unwrap(), port };
        let start = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            assert!(start.elapsed() < LIMIT, "the server does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn signal(&self, signal: libc::c_int) {
        // SAFETY: a plain system call; the process is a child that nobody has waited for.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }
}

impl Drop for RpcServer {
    fn drop(&mut self) {
        // It may have been ended by its test.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nobody listens on.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Two servers, a folder, and a random model in it.
struct Bench {
    servers: [RpcServer; 2],
    folder: TempDir,
    model: PathBuf,
}

impl Bench {
    fn new(model: &[&str]) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("m.gguf");
        let (exit, _, err) = outcome(&[&["synth", "-o", path(&file)][..], model].concat());
        assert_eq!(exit, 0, "{err}");
        Bench { servers: [RpcServer::start(), RpcServer::start()], folder, model: file }
    }

    fn addresses(&self) -> String {
        self.servers.each_ref().map(RpcServer::address).join(",")
    }

    /// The trace of the reference in the precision of the file, and what is said meanwhile.
    fn capture(&self, name: &str, more: &[&str]) -> (TraceReader, String) {
        let trace = self.folder.path().join(name);
        let model = ["capture", "reference", "--reference", "native", "-m", path(&self.model)];
        let task = ["--tokens", "3,1,4,1,5,9,2,6", "-n", "2", "--overwrite", "-o", path(&trace)];
        let mut command = firstdiff(&[&model[..], &task, more].concat());
        // Floors that another build has measured are not these.
        let output =
            command.env("FIRSTDIFF_CACHE", self.folder.path().join("cache")).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{err}");
        (TraceReader::open(&trace).unwrap(), err)
    }
}

fn tensors(trace: &TraceReader) -> Vec<(Site, Tensor)> {
    trace.sites().map(|site| (site, trace.tensor(site).unwrap().unwrap())).collect()
}

/// The largest distance of an element, in units of the floor that is recorded.
fn worst(trace: &TraceReader, other: &TraceReader) -> f64 {
    let floor = &trace.manifest().floors[0].floor.0;
    let (ours, theirs) = (tensors(trace), tensors(other));
    assert_eq!(ours.len(), theirs.len());
    let of_site = |((site, a), (_, b)): (&(Site, Tensor), &(Site, Tensor))| {
        let pairs = || a.data.iter().zip(&b.data).filter(|(a, _)| a.is_finite());
        let distance = pairs().map(|(a, b)| f64::from(a - b).abs()).fold(0.0, f64::max);
        let size = pairs().map(|(a, _)| f64::from(a.abs())).fold(0.0, f64::max);
        if distance == 0.0 { 0.0 } else { distance / size / floor[site].elementwise }
    };
    ours.iter().zip(&theirs).map(of_site).fold(0.0, f64::max)
}

#[test]
fn two_servers_give_the_tensors_and_floors_of_one_machine() {
    let models = [
        ["--shape", "tiny-qwen2", "--type", "q8_0"],
        // Experts, whose choice is forced while the floor is measured.
        ["--arch", "deepseek2", "--type", "f16"],
        // A recurrent state.
        ["--arch", "qwen3next", "--type", "f16"],
    ];
    for model in models {
        let bench = Bench::new(&model);
        let [first, second] = bench.servers.each_ref().map(RpcServer::address);
        let (here, err) = bench.capture("here", &[]);
        assert_eq!(err, "");
        let (there, err) = bench.capture("there", &["--rpc", &bench.addresses()]);
        // llama.cpp's own log says so.
        let [half, rest] = if model[1] == "tiny-qwen2" { [1, 2] } else { [2, 3] };
        assert_eq!(
            err,
            format!(
                "firstdiff: llama.cpp has layers 0 to {half} on {first}, layer {rest} and the output on {second}\n"
            )
        );
        assert!(there.manifest().device.contains(&second), "{}", there.manifest().device);
        assert!(here.sites().count() > 150);
        assert!(tensors(&here) == tensors(&there), "{model:?}: {} x floor", worst(&here, &there));
        // The noise that is written into servers' tensors does what it does here.
        assert_eq!(here.manifest().floors, there.manifest().floors, "{model:?}");
    }
}

#[test]
fn weights_that_llama_cpp_reorders_here_and_not_on_a_server_are_within_the_floor() {
    let bench = Bench::new(&["--arch", "gemma3", "--type", "q4_k"]);
    let (here, _) = bench.capture("here", &[]);
    let (there, _) = bench.capture("there", &["--rpc", &bench.addresses()]);
    let worst = worst(&here, &there);
    assert!(worst < 8.0, "{worst} x floor");
}

#[test]
fn an_engine_is_compared_with_layers_on_servers() {
    let bench = Bench::new(&["--shape", "tiny-llama", "--type", "f16"]);
    let run = ["run", "-m", path(&bench.model), "-p", "Once upon a time", "-n", "1"];
    let on = ["--reference", "native", "--rpc", &bench.addresses()];
    let (exit, out, err) = outcome(&[&run[..], &on].concat());
    assert!(exit == 0 && out.starts_with("equal within the floor: "), "{out}{err}");
    let fault = ["--fault", "rope-pairs-interleaved"];
    let (exit, out, err) = outcome(&[&run[..], &on, &fault].concat());
    let cause = "q and k rotation, all layers: pairs (i, i+d/2) instead of (2i, 2i+1) (proven";
    assert!(exit == 1 && out.contains(cause), "{out}{err}");
}

/// What a long run ends with after a server got a signal, once the layers lie on it.
fn ends_with(signal: libc::c_int, more: &[&str]) -> (Bench, i32, String) {
    let bench = Bench::new(&["--shape", "tiny-qwen2"]);
    let trace = bench.folder.path().join("trace");
    let long = ["capture", "reference", "--reference", "native", "-n", "400", "-o", path(&trace)];
    let on = ["-m", path(&bench.model), "--rpc", &bench.addresses()];
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("firstdiff"));
    command.args(long).args(on).args(more).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut placed = String::new();
    said.read_line(&mut placed).unwrap();
    assert!(placed.contains("llama.cpp has layers"), "{placed}");
    thread::sleep(Duration::from_millis(300));
    bench.servers[1].signal(signal);
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > LIMIT {
            child.kill().unwrap();
        }
        thread::sleep(Duration::from_millis(50));
    };
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    (bench, status.code().unwrap_or(-1), rest)
}

#[test]
fn a_server_that_dies_or_stops_in_the_middle_is_one_line_that_names_it() {
    for (signal, more) in [(libc::SIGKILL, &[][..]), (libc::SIGSTOP, &["--timeout", "10"][..])] {
        let (bench, exit, err) = ends_with(signal, more);
        assert_eq!((exit, err.lines().count()), (5, 1), "{err}");
        let [alive, gone] = bench.servers.each_ref().map(RpcServer::address);
        let says =
            format!("firstdiff: the RPC server {gone} does not answer any more, as llama.cpp ");
        assert!(err.starts_with(&says) && !err.contains(&alive), "{err}");
        assert!(err.contains("start it again"), "{err}");
    }
}

/// Refused with one line before anything is computed.
fn refused_on(servers: &str, precision: &str, code: i32, says: &str) {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let capture = ["capture", "reference", "-o", path(&trace), "--reference", precision];
    refused(&[&capture[..], &["--rpc", servers]].concat(), code, says);
    assert!(!Path::new(&trace).exists());
}

#[test]
fn servers_that_are_not_there_or_of_no_use_are_refused_with_a_line() {
    let nobody = format!("127.0.0.1:{}", free_port());
    refused_on(&nobody, "native", 5, &format!("no RPC server of llama.cpp at {nobody}: "));
    let bench = RpcServer::start();
    let address = bench.address();
    let both = format!("{address},{nobody}");
    refused_on(&both, "native", 5, &format!("no RPC server of llama.cpp at {nobody}: "));
    refused_on(&format!("{address},{address}"), "native", 2, "twice");
    refused_on(&address, "f32", 2, "add --reference native");
    // A server has one client at a time.
    let _other = TcpStream::connect((Ipv4Addr::LOCALHOST, bench.port)).unwrap();
    refused_on(&address, "native", 5, "one client at a time");
    let (exit, _, err) = outcome(&["run", "--reference", "native", "--rpc", "localhost"]);
    assert!(exit == 2 && err.contains("expected HOST:PORT"), "{err}");
}

#[test]
fn a_server_says_why_it_cannot_listen() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let (exit, _, err) = outcome(&["rpc-server", "--port", &port.to_string()]);
    let says = format!("firstdiff: cannot listen on 127.0.0.1:{port}: Address already in use");
    assert!(exit == 2 && err.starts_with(&says) && err.lines().count() == 1, "{err}");
    // The help says who may reach it.
    let help = firstdiff(&["rpc-server", "--help"]).output().unwrap().stdout;
    assert!(String::from_utf8(help).unwrap().contains("only a trusted one"));
}
