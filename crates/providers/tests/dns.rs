//! Against a DNS server of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use membership::Place;
use providers::{Me, Source};
use std::net::{IpAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn me() -> Me {
    Me { node: base::NodeId(1), addr: ([127, 0, 0, 1], 1).into() }
}

struct Server {
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `None` where there is no dnsmasq; CI must have it.
fn server(args: &[&str]) -> Option<Server> {
    // Free a moment ago: nobody else takes it in the meantime, or the server says so and ends.
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = Command::new("dnsmasq");
    command.args([
        "--no-daemon",
        "--no-resolv",
        "--no-hosts",
        "--conf-file=/dev/null",
        "--bind-interfaces",
        "--user=root",
    ]);
    command.args(["--listen-address=127.0.0.1", "--local=/test/", "--edns-packet-max=512"]);
    command.arg(format!("--port={port}")).args(args).stderr(Stdio::null());
    match command.spawn() {
        Ok(child) => {
            let server = Server { child, port };
            let until = Instant::now() + Duration::from_secs(20);
            while !server.is_there() {
                assert!(Instant::now() < until, "dnsmasq does not answer");
            }
            Some(server)
        }
        Err(e) => {
            assert!(std::env::var_os("CI").is_none(), "CI must run this test: dnsmasq: {e}");
            println!("SKIPPED: no dnsmasq (Debian: dnsmasq-base)");
            None
        }
    }
}

impl Server {
    fn ask(&self, name: &str) -> Result<Vec<Place>, String> {
        let source: Source = format!("dns:{name}@127.0.0.1:{}", self.port).parse().unwrap();
        source.ask(&me(), false).map_err(|e| e.to_string())
    }

    /// It answers a question about the root.
    fn is_there(&self) -> bool {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let question = [0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1];
        socket.connect(("127.0.0.1", self.port)).unwrap();
        socket.send(&question).is_ok() && socket.recv(&mut [0; 512]).is_ok()
    }
}

fn places(all: &[(&str, Option<u16>)]) -> Vec<Place> {
    all.iter().map(|(ip, port)| Place { ip: ip.parse::<IpAddr>().unwrap(), port: *port }).collect()
}

#[test]
fn addresses_and_services_are_found() {
    let hosts = ["--host-record=a.test,10.0.0.1,fd00::1", "--host-record=b.test,10.0.0.2"];
    let services = ["--srv-host=_tombolo._tcp.test,a.test,7474", "--srv-host=_tombolo._tcp.test,b.test,7480"];
    let Some(server) = server(&[&hosts[..], &services[..]].concat()) else { return };
    assert_eq!(server.ask("a.test").unwrap(), places(&[("10.0.0.1", None), ("fd00::1", None)]));
    let mut found = server.ask("_tombolo._tcp.test").unwrap();
    found.sort();
    let mut wanted = places(&[("10.0.0.1", Some(7474)), ("fd00::1", Some(7474)), ("10.0.0.2", Some(7480))]);
    wanted.sort();
    assert_eq!(found, wanted);
    let unknown = server.ask("nobody.test").unwrap_err();
    assert!(unknown.contains("nobody.test") && unknown.contains("NXDOMAIN"), "{unknown}");
    assert!(server.ask("not a name..").is_err());
}

/// More than fits a datagram.
#[test]
fn a_long_answer_comes_whole() {
    let hosts: Vec<String> = (0..200).map(|i| format!("--host-record=many.test,10.1.0.{i}")).collect();
    let Some(server) = server(&hosts.iter().map(String::as_str).collect::<Vec<_>>()) else { return };
    assert_eq!(server.ask("many.test").unwrap().len(), 200);
}

#[test]
fn a_server_that_is_not_there_is_an_error_and_soon() {
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let source: Source = format!("dns:a.test@127.0.0.1:{port}").parse().unwrap();
    assert!(source.ask(&me(), false).is_err());
}
