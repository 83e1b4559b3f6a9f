//! llama.cpp's layers on other machines: the servers of its RPC backend.
//!
//! llama.cpp ends the process where a server is not there, or is of another version. So each is greeted here first,
//! with the first message of its protocol, and what is wrong is an error.

use std::{
    ffi::{CStr, CString, c_char, c_void},
    fmt,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    time::{Duration, Instant},
};

use llama_cpp_sys_2 as sys;

use crate::{
    core::{
        activity::{self, Foreign},
        exit::Exit,
    },
    model::llama,
};

/// The port that llama.cpp's own `rpc-server` takes.
pub const DEFAULT_PORT: u16 = 50052;
/// Devices that ggml's scheduler takes beside the CPU.
const MOST_DEVICES: usize = 15;
/// How long a server may take to accept a connection, and to answer the greeting.
const PATIENCE: Duration = Duration::from_secs(5);

/// The greeting of ggml-rpc.h: the command's number, what follows it, and what is answered.
const HELLO: u8 = 14;
const CAPABILITIES: usize = 24;
const ANSWER: usize = 4 + CAPABILITIES;
/// The protocol that this llama.cpp speaks: RPC_PROTO_MAJOR_VERSION, and the newest RPC_PROTO_MINOR_VERSION.
const PROTOCOL: [u8; 2] = [7, 0];

/// Where one server listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    host: String,
    port: u16,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Why the servers cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(
        "no RPC server of llama.cpp at {server}: {source}; start one there with `firstdiff rpc-server`, or \
         llama.cpp's own `rpc-server`"
    )]
    Unreachable { server: Server, source: io::Error },
    #[error(
        "{server} takes the connection but does not answer; an RPC server has one client at a time: wait for the \
         other, or start another server"
    )]
    Silent { server: Server },
    #[error(
        "{server} is no RPC server of this llama.cpp: it does not know the greeting, as one of another version \
         does not; start it there with `firstdiff rpc-server`"
    )]
    Stranger { server: Server },
    #[error(
        "{server} speaks version {}.{}.{} of llama.cpp's RPC protocol, and this llama.cpp {}.{}; start it there \
         with `firstdiff rpc-server`", found[0], found[1], found[2], PROTOCOL[0], PROTOCOL[1]
    )]
    Version { server: Server, found: [u8; 3] },
    #[error("--rpc names {server} twice; name each server once")]
    Twice { server: Server },
    #[error("the RPC server at {server} has no device; start it with one")]
    NoDevice { server: Server },
    #[error(
        "the RPC servers have {found} devices; llama.cpp takes {MOST_DEVICES}: name fewer servers"
    )]
    ManyDevices { found: usize },
    #[error(
        "this firstdiff was built without llama.cpp's RPC backend; build it with GGML_RPC=ON in the environment"
    )]
    NotBuilt,
    #[error("cannot listen on {address}: {source}; give another --host or --port")]
    Listen { address: SocketAddr, source: io::Error },
}

impl ServerError {
    /// The exit code of the error.
    pub fn exit(&self) -> Exit {
        match self {
            ServerError::Listen { .. }
            | ServerError::Twice { .. }
            | ServerError::ManyDevices { .. } => Exit::BadInput,
            _ => Exit::Device,
        }
    }
}

impl Server {
    /// A server by its address, `HOST:PORT`.
    ///
    /// # Errors
    /// In words, where that is not its form.
    pub fn parse(text: &str) -> Result<Server, String> {
        let form = || "expected HOST:PORT, as in 192.168.1.7:50052".to_string();
        let (host, port) = text.rsplit_once(':').ok_or_else(form)?;
        let port = port.parse().ok().filter(|&port| port > 0).ok_or_else(form)?;
        if host.contains(':') {
            return Err("llama.cpp's RPC has no IPv6; give a name or an IPv4 address".to_string());
        }
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(form());
        }
        Ok(Server { host: host.to_string(), port })
    }

    /// Greets it, and leaves again.
    ///
    /// # Errors
    /// Where llama.cpp could not use it.
    pub fn greet(&self) -> Result<(), ServerError> {
        let server = || self.clone();
        let unreachable = |source| ServerError::Unreachable { server: server(), source };
        let stream = self.connect().map_err(unreachable)?;
        let [major, minor, patch] = greeted(&stream).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                ServerError::Silent { server: server() }
            }
            _ => ServerError::Stranger { server: server() },
        })?;
        if major == PROTOCOL[0] && [major, minor] <= PROTOCOL {
            return Ok(());
        }
        Err(ServerError::Version { server: server(), found: [major, minor, patch] })
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let mut addresses = (self.host.as_str(), self.port).to_socket_addrs()?;
        let address = addresses.find(SocketAddr::is_ipv4);
        let address = address.ok_or_else(|| io::Error::other("the name has no IPv4 address"))?;
        TcpStream::connect_timeout(&address, PATIENCE)
    }
}

/// The version that is answered to the greeting.
fn greeted(mut stream: &TcpStream) -> io::Result<[u8; 3]> {
    let end = Instant::now() + PATIENCE;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut greeting = vec![HELLO];
    greeting.extend((CAPABILITIES as u64).to_le_bytes());
    greeting.extend([0; CAPABILITIES]);
    stream.write_all(&greeting)?;
    // A stranger may send a byte now and then.
    let mut answer = [0; 8 + ANSWER];
    let mut read = 0;
    while read < answer.len() {
        let left = end.saturating_duration_since(Instant::now());
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match stream.read(&mut answer[read..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => read += n,
        }
    }
    let (size, rest) = answer.split_at(8);
    if size != (ANSWER as u64).to_le_bytes() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok([rest[0], rest[1], rest[2]])
}

/// The addresses, as a list.
pub fn listed(servers: &[Server]) -> String {
    let names: Vec<String> = servers.iter().map(Server::to_string).collect();
    names.join(", ")
}

/// A device of a server, for as long as the process lives.
pub struct RemoteDevice {
    pub device: sys::ggml_backend_dev_t,
    /// As llama.cpp's log has it.
    pub name: String,
    pub server: Server,
}

type AddServer = unsafe extern "C" fn(*const c_char) -> sys::ggml_backend_reg_t;
type StartServer = unsafe extern "C" fn(
    endpoint: *const c_char,
    cache_folder: *const c_char,
    threads: usize,
    n_devices: usize,
    devices: *mut sys::ggml_backend_dev_t,
);

/// A function of the RPC backend, which is not there in each build.
fn function(name: &CStr) -> Result<*mut c_void, ServerError> {
    // SAFETY: the names are NUL-terminated, and a registry lives as long as the process.
    let function = unsafe {
        let backend = sys::ggml_backend_reg_by_name(c"RPC".as_ptr());
        if backend.is_null() {
            return Err(ServerError::NotBuilt);
        }
        sys::ggml_backend_reg_get_proc_address(backend, name.as_ptr())
    };
    if function.is_null() { Err(ServerError::NotBuilt) } else { Ok(function) }
}

/// The devices of servers, in their order. llama.cpp stays connected to them.
///
/// # Errors
/// Where one of them cannot be used.
pub fn devices(servers: &[Server]) -> Result<Vec<RemoteDevice>, ServerError> {
    let add = function(c"ggml_backend_rpc_add_server")?;
    // SAFETY: what ggml has under that name.
    let add = unsafe { std::mem::transmute::<*mut c_void, AddServer>(add) };
    let mut devices: Vec<RemoteDevice> = Vec::new();
    for (index, server) in servers.iter().enumerate() {
        if servers[..index].contains(server) {
            return Err(ServerError::Twice { server: server.clone() });
        }
        server.greet()?;
        let text = server.to_string();
        let _running = activity::running(Foreign::Server, &text, "lists the server's devices");
        let endpoint = CString::new(text.as_str()).expect("an address has no NUL");
        let before = devices.len();
        // SAFETY: the address is NUL-terminated; a registry and its devices live as long as the process.
        unsafe {
            let registry = add(endpoint.as_ptr());
            let n = if registry.is_null() { 0 } else { sys::ggml_backend_reg_dev_count(registry) };
            for index in 0..n {
                let device = sys::ggml_backend_reg_dev_get(registry, index);
                let name = CStr::from_ptr(sys::ggml_backend_dev_name(device));
                let name = name.to_string_lossy().into_owned();
                devices.push(RemoteDevice { device, name, server: server.clone() });
            }
        }
        if devices.len() == before {
            return Err(ServerError::NoDevice { server: server.clone() });
        }
    }
    if devices.len() > MOST_DEVICES {
        return Err(ServerError::ManyDevices { found: devices.len() });
    }
    Ok(devices)
}

/// Which layers llama.cpp has just placed on which server, as its log says.
pub fn placed(devices: &[RemoteDevice]) -> String {
    let layers = llama::take_placed();
    // llama.cpp counts what follows the last layer as one.
    let output = layers.iter().map(|(layer, _)| *layer).max();
    let mut places: Vec<(String, Vec<usize>)> = Vec::new();
    for (layer, device) in layers {
        let own = devices.iter().find(|own| own.name == device);
        let place = own.map_or(device, |own| own.server.to_string());
        match places.last_mut().filter(|(last, _)| *last == place) {
            Some((_, layers)) => layers.push(layer),
            None => places.push((place, vec![layer])),
        }
    }
    let texts = places.iter().map(|(place, layers)| {
        let has_output = layers.last().copied() == output;
        let last = layers.len() - usize::from(has_output);
        let mut parts = match layers[..last] {
            [] => Vec::new(),
            [one] => vec![format!("layer {one}")],
            [first, .., last] => vec![format!("layers {first} to {last}")],
        };
        parts.extend(has_output.then(|| "the output".to_string()));
        format!("{} on {place}", parts.join(" and "))
    });
    texts.collect::<Vec<_>>().join(", ")
}

/// Serves this machine's CPU to one llama.cpp after another; does not return where that succeeds.
///
/// # Errors
/// Where nobody can listen there.
pub fn serve(host: Ipv4Addr, port: u16, threads: usize) -> Result<(), ServerError> {
    let start = function(c"ggml_backend_rpc_start_server")?;
    // SAFETY: what ggml has under that name.
    let start = unsafe { std::mem::transmute::<*mut c_void, StartServer>(start) };
    let address = SocketAddr::from((host, port));
    // llama.cpp gives no reason.
    let listener = TcpListener::bind(address);
    drop(listener.map_err(|source| ServerError::Listen { address, source })?);
    let endpoint = CString::new(address.to_string()).expect("an address has no NUL");
    // SAFETY: the address and the array live for the call, and one device is what it has.
    unsafe {
        let mut cpu = sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU);
        start(endpoint.as_ptr(), std::ptr::null(), threads, 1, &raw mut cpu);
    }
    let source = io::Error::other("llama.cpp's server came back");
    Err(ServerError::Listen { address, source })
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// What is made of a server that sends these bytes once it was greeted, then waits for the client to leave.
    fn greeted_by(answer: &'static [u8], stays: bool) -> Result<(), ServerError> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut greeting = [0; 9 + CAPABILITIES];
            stream.read_exact(&mut greeting).unwrap();
            assert_eq!(greeting[..9], [HELLO, CAPABILITIES as u8, 0, 0, 0, 0, 0, 0, 0]);
            stream.write_all(answer).unwrap();
            if stays {
                // Its end is all that is waited for.
                let _ = stream.read(&mut [0]);
            }
        });
        let result = Server { host: "127.0.0.1".into(), port }.greet();
        server.join().unwrap();
        result
    }

    const fn answer(version: [u8; 3]) -> [u8; 8 + ANSWER] {
        let mut bytes = [0; 8 + ANSWER];
        bytes[0] = ANSWER as u8;
        [bytes[8], bytes[9], bytes[10]] = version;
        bytes
    }

    #[test]
    fn a_server_of_another_version_or_of_something_else_is_told_from_ours() {
        static OURS: [u8; 8 + ANSWER] = answer([PROTOCOL[0], PROTOCOL[1], 3]);
        static OLD: [u8; 8 + ANSWER] = answer([3, 6, 2]);
        greeted_by(&OURS, true).unwrap();
        let old = greeted_by(&OLD, true).unwrap_err();
        assert!(old.to_string().contains(" speaks version 3.6.2 of llama.cpp's RPC"), "{old}");
        let web = greeted_by(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", true);
        assert!(matches!(web, Err(ServerError::Stranger { .. })), "{web:?}");
        let gone = greeted_by(b"", false);
        assert!(matches!(gone, Err(ServerError::Stranger { .. })), "{gone:?}");
        let silent = greeted_by(b"\x1c", true);
        assert!(matches!(silent, Err(ServerError::Silent { .. })), "{silent:?}");
    }

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for good in ["127.0.0.1:50052", "node-7.cluster:1", "localhost:65535"] {
            assert_eq!(Server::parse(good).unwrap().to_string(), good);
        }
        for bad in ["", "host", "host:", ":1", "host:0", "host:65536", "host:x", "a b:1", "a\n:1"] {
            assert!(Server::parse(bad).unwrap_err().contains("expected HOST:PORT"), "{bad}");
        }
        assert!(Server::parse("[::1]:50052").unwrap_err().contains("no IPv6"));
    }
}
