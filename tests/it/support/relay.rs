//! A load balancer in front of several servers: each connection goes to the next one that takes it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A running one. It ends with this value.
pub struct Relay {
    pub address: SocketAddr,
    servers: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Relay {
    pub async fn start(servers: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let servers = Arc::new(Mutex::new(servers.iter().map(|&server| server.to_owned()).collect()));
        let task = tokio::spawn(accept(listener, servers.clone()));
        Self { address, servers, task }
    }

    /// Puts one server in another's place, for new connections.
    pub fn replace(&self, index: usize, server: &str) {
        self.servers.lock().unwrap()[index] = server.to_owned();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, servers: Arc<Mutex<Vec<String>>>) {
    let next = AtomicUsize::new(0);
    while let Ok((mut client, _)) = listener.accept().await {
        let mut in_turn = servers.lock().unwrap().clone();
        let first = next.fetch_add(1, Ordering::Relaxed) % in_turn.len();
        in_turn.rotate_left(first);
        tokio::spawn(async move {
            for server in in_turn {
                if let Ok(mut server) = TcpStream::connect(server).await {
                    // Either side may go at any time; the other one is told by the end of its connection.
                    copy_bidirectional(&mut client, &mut server).await.ok();
                    return;
                }
            }
        });
    }
}
