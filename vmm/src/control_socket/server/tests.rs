//! The server with a handler that counts, and clients of every kind.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use event_manager::{EventManager, SubscriberOps};

use super::*;

struct Counter(u64);

impl Handler for Counter {
    fn call(&mut self, method: Method) -> Result<Value, Error> {
        self.0 += 1;
        match method {
            Method::Status => Ok(self.0.into()),
            // As long as an answer gets.
            Method::Stats => Ok("x".repeat(1 << 20).into()),
            _ => Err(Error::vm("not here")),
        }
    }
}

/// A server in a thread of its own, until it is told to stop.
struct Running {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    /// How many clients there are.
    clients: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("server.{name}.{}", std::process::id()));
        let (stop, clients) = <(Arc<AtomicBool>, Arc<AtomicU32>)>::default();
        let (ready, is_ready) = mpsc::channel();
        let thread = {
            let (path, stop, clients) = (path.clone(), stop.clone(), clients.clone());
            thread::spawn(move || {
                let socket = ControlSocket::bind(&path).unwrap();
                let server = Rc::new(RefCell::new(Server::new(socket, Counter(0))));
                let mut events = EventManager::new().unwrap();
                events.add_subscriber(server.clone());
                ready.send(()).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    events.run_with_timeout(10).unwrap();
                    let count = server.borrow().clients.len() as u32;
                    clients.store(count, Ordering::Relaxed);
                }
                drop(events);
                let server = Rc::into_inner(server).unwrap().into_inner();
                server.into_waiting().tell(&WaitResult {
                    reason: "stopped".into(),
                    fault: None,
                    status: None,
                });
            })
        };
        is_ready.recv().unwrap();
        Self {
            path,
            stop,
            clients,
            thread: Some(thread),
        }
    }

    fn connect(&self) -> Client {
        let stream = UnixStream::connect(&self.path).unwrap();
        Client(BufReader::new(stream))
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Client(BufReader<UnixStream>);

impl Client {
    fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn status(&mut self) -> u64 {
        self.send(b"{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"status\"}\n");
        let answer = self.answer();
        assert_eq!(answer["id"], 7);
        answer["result"].as_u64().unwrap()
    }
}

#[test]
fn a_thousand_clients_in_turn_and_sixty_four_at_once_are_served() {
    let server = Running::start("many");
    for number in 1..=1000 {
        assert_eq!(server.connect().status(), number);
    }
    let mut clients: Vec<Client> = (0..64).map(|_| server.connect()).collect();
    for _ in 0..3 {
        for client in &mut clients {
            client.status();
        }
    }
    assert_eq!(clients[0].status(), 1000 + 3 * 64 + 1);
}

#[test]
fn more_clients_than_there_is_room_for_wait_their_turn() {
    let server = Running::start("full");
    let mut clients: Vec<Client> = (0..MAX_CLIENTS).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.status();
    }
    let mut late = server.connect();
    late.send(b"{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"status\"}\n");
    clients.pop();
    assert_eq!(late.answer()["result"], MAX_CLIENTS as u64 + 1);
}

#[test]
fn noise_is_answered_with_the_error_that_it_is_and_harms_nobody() {
    let server = Running::start("noise");
    let mut client = server.connect();
    for (line, code) in [
        (&b"\xff\xfe\x00binary\n"[..], -32700),
        (b"{\"jsonrpc\":\n", -32700),
        (b"[]\n", -32600),
        (
            b"{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"status\"}\n",
            -32600,
        ),
        (
            b"{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"status\"}\n",
            -32600,
        ),
        (
            b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"fly\"}\n",
            -32601,
        ),
        (
            b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"read-msr\"}\n",
            -32602,
        ),
        (
            b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"pause\"}\n",
            -32000,
        ),
    ] {
        client.send(line);
        let answer = client.answer();
        assert_eq!(answer["error"]["code"], code, "{answer}");
    }
    // Empty lines and notifications get no answer.
    client.send(b"\n  \n{\"jsonrpc\":\"2.0\",\"method\":\"status\"}\n");
    client.status();
    // Half a request, and then gone.
    server
        .connect()
        .send(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"met");
    client.status();
}

#[test]
fn a_line_of_a_mebibyte_is_refused_and_the_client_closed() {
    let server = Running::start("long");
    let mut client = server.connect();
    let mut stream = client.0.get_ref().try_clone().unwrap();
    let sender = thread::spawn(move || drop(stream.write_all(&vec![b'x'; 1 << 20])));
    assert_eq!(client.answer()["error"]["code"], -32600);
    let mut rest = Vec::new();
    // Closed with unread input: the client sees the end or a reset.
    let _ = client.0.read_to_end(&mut rest);
    assert!(rest.is_empty());
    sender.join().unwrap();
    server.connect().status();
}

#[test]
fn a_client_that_never_reads_is_not_served_and_holds_up_nobody() {
    let server = Running::start("deaf");
    let mut deaf = server.connect();
    for _ in 0..100 {
        deaf.send(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"stats\"}\n");
    }
    let before = server.connect().status();
    let after = server.connect().status();
    // Few of its hundred requests were carried out.
    assert!(before < 10 && after <= before + 2, "{before} {after}");
}

#[test]
fn those_who_wait_are_told_at_the_end_and_may_go_before() {
    let mut server = Running::start("wait");
    let mut client = server.connect();
    client.send(b"{\"jsonrpc\":\"2.0\",\"id\":\"w\",\"method\":\"wait\"}\n");
    let count = client.status();
    let mut impatient = server.connect();
    impatient.send(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"wait\"}\n");
    assert_eq!(impatient.status(), count + 1);
    drop(impatient);
    // No client can have the server keep more than so many.
    let mut greedy = server.connect();
    for _ in 0..=MAX_WAITS {
        greedy.send(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"wait\"}\n");
    }
    assert_eq!(greedy.answer()["error"]["code"], -32000);
    drop(greedy);
    while server.clients.load(Ordering::Relaxed) != 1 {
        thread::yield_now();
    }
    server.stop();
    let answer = client.answer();
    assert_eq!(answer["id"], "w");
    assert_eq!(answer["result"]["reason"], "stopped");
    assert!(!server.path.exists());
}

/// A socket that does not listen, for which accept(2) fails each time, and whose other end is gone, of which epoll tells each time, as of
/// a client that the host has no room for.
#[test]
fn a_client_that_cannot_be_let_in_is_looked_for_again_after_a_while_and_not_all_the_time() {
    let path = std::env::temp_dir().join(format!("server.no-room.{}", std::process::id()));
    let mut socket = ControlSocket::bind(&path).unwrap();
    let (deaf, _) = UnixStream::pair().unwrap();
    let deaf = UnixListener::from(OwnedFd::from(deaf));
    let listening = std::mem::replace(&mut socket.listener, deaf);
    let server = Rc::new(RefCell::new(Server::new(socket, Counter(0))));
    let mut events = EventManager::new().unwrap();
    events.add_subscriber(server.clone());
    assert_eq!(server.borrow().timeout(), None);
    for round in 0..2 {
        assert_eq!(events.run_with_timeout(1000).unwrap(), 1, "round {round}");
        let wait = server.borrow().timeout().unwrap();
        assert!(wait > PAUSE / 2 && wait <= PAUSE, "{wait:?}");
        // Nothing is told of meanwhile.
        assert_eq!(events.run_with_timeout(50).unwrap(), 0);
        server.borrow_mut().run();
        thread::sleep(wait);
        server.borrow_mut().run();
        assert_eq!(server.borrow().timeout(), None);
        // It opens again.
        assert_eq!(events.run_with_timeout(1000).unwrap(), 1);
    }
    // The host has room again.
    drop(std::mem::replace(
        &mut server.borrow_mut().socket.listener,
        listening,
    ));
    events.run_with_timeout(0).unwrap();
    server.borrow_mut().closed_until = Some(Instant::now());
    server.borrow_mut().run();
    let _client = UnixStream::connect(&path).unwrap();
    for _ in 0..3 {
        events.run_with_timeout(1000).unwrap();
    }
    assert_eq!(server.borrow().clients.len(), 1);
    assert!(!server.borrow().told);
}
