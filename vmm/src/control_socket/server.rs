//! Serves the clients from an event loop.
//!
//! A client that the host has no room for (`accept` fails, most often for want of file descriptors) stays where it is, and
//! epoll would tell of it again at once, for ever. So the server looks away for a second then, and says so once.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use serde_json::Value;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::connection::{Connection, Line, MAX_LINE};
use super::listener::ControlSocket;
use super::method::Method;
use super::protocol::{Error, Id, Request, Response};
use super::results::WaitResult;

/// How many clients are served at a time; further ones wait.
pub const MAX_CLIENTS: usize = 128;

/// How long no client is let in after one that the host had no room for.
const PAUSE: Duration = Duration::from_secs(1);

/// How many requests of one client can wait for the guest's end.
const MAX_WAITS: usize = 16;

/// What carries out the methods, but for `wait`.
pub trait Handler {
    /// Carries out a method and gives its result.
    ///
    /// # Errors
    ///
    /// [`Error`], which goes to the client.
    fn call(&mut self, method: Method) -> Result<Value, Error>;
}

/// The server: a subscriber of an event loop.
pub struct Server<H> {
    socket: ControlSocket,
    handler: H,
    clients: BTreeMap<RawFd, Connection>,
    refused: Option<String>,
    /// When clients are let in again.
    closed_until: Option<Instant>,
    /// It was said that the host has no room, and no client has come in since.
    told: bool,
    /// Has the event loop hand over what it takes to let clients in again.
    reopen: Option<EventFd>,
}

/// The clients that wait for the guest's end.
pub struct Waiting {
    clients: Vec<Connection>,
    _socket: ControlSocket,
}

impl Waiting {
    /// Tells them how it ended, as far as they read it at once, and closes everything.
    pub fn tell(self, result: &WaitResult) {
        let value = serde_json::to_value(result).expect("strings alone");
        for mut client in self.clients {
            for id in std::mem::take(&mut client.waiting) {
                answer(&mut client, Some(id), Ok(value.clone()));
            }
            let _ = client.flush();
        }
    }
}

impl<H: Handler> Server<H> {
    /// Serves `socket` with `handler`.
    pub fn new(socket: ControlSocket, handler: H) -> Self {
        Self {
            socket,
            handler,
            clients: BTreeMap::new(),
            refused: None,
            closed_until: None,
            told: false,
            reopen: None,
        }
    }

    /// How long until [`run`](Self::run) has something to do, if it will have. The event loop should wait no longer.
    pub fn timeout(&self) -> Option<Duration> {
        let then = self.closed_until?;
        Some(then.saturating_duration_since(Instant::now()))
    }

    /// Does what is due. Belongs after each turn of the event loop.
    pub fn run(&mut self) {
        let due = self.closed_until.take_if(|then| Instant::now() >= *then);
        if let (Some(_), Some(reopen)) = (due, &self.reopen) {
            // It fails only if the count overflows, which takes more than one write.
            let _ = reopen.write(1);
        }
    }

    /// Why no client will ever be served, if the event loop has not taken the socket. To be asked once it has been given
    /// the server.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// Ends the service, but for those who wait for the guest's end.
    pub fn into_waiting(self) -> Waiting {
        let clients = self.clients.into_values();
        Waiting {
            clients: clients
                .filter(|client| !client.waiting.is_empty())
                .collect(),
            _socket: self.socket,
        }
    }

    fn accept(&mut self, ops: &mut EventOps<'_>) {
        while self.clients.len() < MAX_CLIENTS {
            let stream = match self.socket.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return,
                    // It has gone again, or a signal came.
                    ErrorKind::ConnectionAborted | ErrorKind::Interrupted => continue,
                    _ => {
                        if !std::mem::replace(&mut self.told, true) {
                            log::warn!(
                                "control socket: {error}: clients wait until the host has room for them"
                            );
                        }
                        self.closed_until = Some(Instant::now() + PAUSE);
                        break;
                    }
                },
            };
            self.told = false;
            let fd = stream.as_raw_fd();
            let watched = stream
                .set_nonblocking(true)
                .is_ok_and(|()| ops.add(Events::new_raw(fd, EventSet::IN)).is_ok());
            if watched {
                self.clients.insert(fd, Connection::new(stream));
            }
        }
        // The next ones wait until one of these goes, or for a while.
        let _ = ops.remove(self.listening());
    }

    fn listening(&self) -> Events {
        Events::new(&self.socket.listener, EventSet::IN)
    }

    fn serve(&mut self, fd: RawFd, events: EventSet, ops: &mut EventOps<'_>) {
        let Some(client) = self.clients.get_mut(&fd) else {
            return;
        };
        let mut alive = client.flush().is_ok();
        if alive && events.contains(EventSet::IN) && client.takes_input() {
            alive = client.fill().is_ok();
        }
        while alive {
            match client.next_line() {
                Line::Whole(line) => serve_line(client, &mut self.handler, &line),
                Line::TooLong => {
                    let message = format!("a line is longer than {MAX_LINE} bytes");
                    push(client, None, Err(Error::request(message)));
                    client.close();
                }
                Line::Partial => break,
            }
            alive = client.flush().is_ok();
        }
        let gone = events.intersects(EventSet::ERROR | EventSet::HANG_UP) && !client.has_output();
        if !alive || client.is_done() || gone {
            let full = self.clients.len() == MAX_CLIENTS;
            let _ = ops.remove(Events::empty_raw(fd));
            self.clients.remove(&fd);
            if full && self.closed_until.is_none() {
                drop(ops.add(self.listening()));
            }
            return;
        }
        let wanted = if client.has_output() {
            EventSet::OUT
        } else if client.takes_input() {
            EventSet::IN
        } else {
            // It waits for the guest's end; its own is told without being asked for.
            EventSet::empty()
        };
        if let Err(error) = ops.modify(Events::new_raw(fd, wanted)) {
            log::warn!("control socket: {error}");
        }
    }
}

fn serve_line<H: Handler>(client: &mut Connection, handler: &mut H, line: &[u8]) {
    if line.trim_ascii().is_empty() {
        return;
    }
    let request = match read_request(line) {
        Ok(request) => request,
        // Without a request there is no id: JSON-RPC wants null.
        Err(error) => return push(client, None, Err(error)),
    };
    match Method::of(&request) {
        Ok(Method::Wait) if client.waiting.len() == MAX_WAITS => {
            let message = format!("{MAX_WAITS} requests of this client wait already");
            answer(client, request.id, Err(Error::vm(message)));
        }
        Ok(Method::Wait) => client.waiting.extend(request.id),
        Ok(method) => answer(client, request.id, handler.call(method)),
        Err(error) => answer(client, request.id, Err(error)),
    }
}

fn read_request(line: &[u8]) -> Result<Request, Error> {
    let value: Value = serde_json::from_slice(line).map_err(|error| Error::parse(&error))?;
    let request: Request = serde_json::from_value(value)
        .map_err(|error| Error::request(format!("the line is no JSON-RPC request: {error}")))?;
    if request.jsonrpc != "2.0" {
        return Err(Error::request(format!(
            "`jsonrpc` is \"{}\", and must be \"2.0\"",
            request.jsonrpc
        )));
    }
    Ok(request)
}

/// Answers a request, unless it is a notification.
fn answer(client: &mut Connection, id: Option<Id>, outcome: Result<Value, Error>) {
    if id.is_some() {
        push(client, id, outcome);
    }
}

fn push(client: &mut Connection, id: Option<Id>, outcome: Result<Value, Error>) {
    let (result, error) = match outcome {
        Ok(result) => (Some(result), None),
        Err(error) => (None, Some(error)),
    };
    let response = Response {
        jsonrpc: "2.0".to_owned(),
        id,
        result,
        error,
    };
    client.push(&serde_json::to_string(&response).expect("plain structs and JSON values"));
}

impl<H: Handler> MutEventSubscriber for Server<H> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(self.listening()) {
            self.refused = Some(error.to_string());
            return;
        }
        let watched = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
            .map_err(|error| error.to_string())
            .and_then(|reopen| {
                let added = ops.add(Events::new(&reopen, EventSet::IN));
                added.map(|()| reopen).map_err(|error| error.to_string())
            });
        match watched {
            Ok(reopen) => self.reopen = Some(reopen),
            Err(words) => self.refused = Some(words),
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.fd() == self.socket.listener.as_raw_fd() {
            self.accept(ops);
        } else if let Some(reopen) = &self.reopen
            && events.fd() == reopen.as_raw_fd()
        {
            let _ = reopen.read();
            // Fails where it is watched already.
            drop(ops.add(self.listening()));
        } else {
            self.serve(events.fd(), events.event_set(), ops);
        }
    }
}

#[cfg(test)]
mod tests;
