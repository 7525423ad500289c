//! Against a server that plays EC2 and S3 (moto), with one that plays the machine's own description of itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use providers::{Me, Source};
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Server {
    child: Child,
    endpoint: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `None` where there is no moto; CI must have it.
fn server() -> Option<Server> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = Command::new(std::env::var("MOTO_SERVER").unwrap_or_else(|_| "moto_server".into()));
    command.args(["-H", "127.0.0.1", "-p", &port.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(child) = command.spawn() else {
        assert!(std::env::var_os("CI").is_none(), "CI must have moto_server");
        eprintln!("skipped: there is no moto_server");
        return None;
    };
    let server = Server { child, endpoint: format!("http://127.0.0.1:{port}") };
    let until = Instant::now() + Duration::from_secs(60);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < until, "moto does not answer");
        std::thread::yield_now();
    }
    Some(server)
}

/// Sends a request as it stands; what comes back.
fn raw(endpoint: &str, method: &str, path: &str, body: &str) -> String {
    let host = endpoint.trim_start_matches("http://");
    let mut stream = TcpStream::connect(host).unwrap();
    // Which service is meant, moto tells by the scope of the signature.
    let service = if path == "/" { "ec2" } else { "s3" };
    let auth = format!(
        "AWS4-HMAC-SHA256 Credential=a/20260101/eu-west-1/{service}/aws4_request, SignedHeaders=host, Signature=x"
    );
    let kind = if path == "/" { "application/x-www-form-urlencoded" } else { "application/xml" };
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: {auth}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all((head + body).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn set(name: &str, value: &str) {
    // This test is the only thread that looks.
    #[allow(unsafe_code)]
    unsafe {
        std::env::set_var(name, value);
    }
}

fn instance(server: &Server, role: &str) -> (String, IpAddr) {
    let tags = format!(
        "TagSpecification.1.ResourceType=instance&TagSpecification.1.Tag.1.Key=role&TagSpecification.1.Tag.1.Value={role}"
    );
    let body = format!(
        "Action=RunInstances&Version=2016-11-15&ImageId=ami-12c6146b&MinCount=1&MaxCount=1&SecurityGroup.1=default&{tags}"
    );
    let answer = raw(&server.endpoint, "POST", "/", &body);
    let between = |tag: &str| {
        let rest = answer.split(&format!("<{tag}>")).nth(1).unwrap_or_else(|| panic!("{tag} in {answer}"));
        rest.split('<').next().unwrap().to_string()
    };
    (between("instanceId"), between("privateIpAddress").parse().unwrap())
}

/// The machine's own description: a token first, then the region and the groups.
fn metadata() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) > 0 {
                head.extend(byte);
            }
            let head = String::from_utf8_lossy(&head).to_lowercase();
            let proved = head.contains("x-aws-ec2-metadata-token: proof");
            let (status, body) = match head.split(' ').nth(1) {
                Some("/latest/api/token") if head.starts_with("put") => ("200 OK", "proof"),
                Some("/latest/meta-data/placement/region") if proved => ("200 OK", "eu-west-1"),
                Some("/latest/meta-data/security-groups") if proved => ("200 OK", "default\n"),
                _ => ("404 Not Found", ""),
            };
            let _ = write!(
                stream,
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    endpoint
}

fn me(n: u64) -> Me {
    Me { node: base::NodeId(n), addr: format!("10.9.{}.{}:7474", n / 250, n % 250 + 1).parse().unwrap() }
}

fn ips(source: &Source, me: &Me) -> Vec<IpAddr> {
    let mut ips: Vec<IpAddr> = source.ask(me, false).unwrap().into_iter().map(|p| p.ip).collect();
    ips.sort();
    ips
}

/// One test: what both look at is the process's environment.
#[test]
fn instances_and_buckets_say_who_is_there() {
    let Some(server) = server() else { return };
    set("AWS_ENDPOINT_URL", &server.endpoint);
    set("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1");
    set("AWS_SHARED_CREDENTIALS_FILE", "/nowhere");
    set("AWS_CONFIG_FILE", "/nowhere");

    // Without credentials, or a region, it is said what to do.
    let ec2 = |text: &str| format!("ec2:{text},endpoint={}", server.endpoint).parse::<Source>().unwrap();
    let error = ec2("tag=role=db").ask(&me(1), false).unwrap_err().to_string();
    assert!(error.contains("region=NAME"), "{error}");
    let error = ec2("tag=role=db,region=eu-west-1").ask(&me(1), false).unwrap_err().to_string();
    assert!(error.contains("AWS_ACCESS_KEY_ID"), "{error}");
    set("AWS_ACCESS_KEY_ID", "a");
    set("AWS_SECRET_ACCESS_KEY", "s");

    // By tag, in a region that is named or that the machine tells.
    let (first, second, other) = (instance(&server, "db"), instance(&server, "db"), instance(&server, "web"));
    let mut both = vec![first.1, second.1];
    both.sort();
    assert_eq!(ips(&ec2("tag=role=db,region=eu-west-1"), &me(1)), both);
    set("AWS_EC2_METADATA_SERVICE_ENDPOINT", &metadata());
    assert_eq!(ips(&ec2("tag=role=db"), &me(1)), both);
    assert_eq!(ips(&ec2("tag=role=web"), &me(1)), [other.1]);
    assert!(ips(&ec2("tag=role=none"), &me(1)).is_empty());
    assert!(ips(&ec2("tag=role=db,region=us-east-2"), &me(1)).is_empty());
    let port = ec2("tag=role=web,port=7000").ask(&me(1), false).unwrap()[0].port;
    assert_eq!(port, Some(7000));
    // One that is stopped should exist, one that is terminated is gone.
    let act = |action: &str, id: &str| {
        raw(&server.endpoint, "POST", "/", &format!("Action={action}&Version=2016-11-15&InstanceId.1={id}"));
    };
    act("StopInstances", &first.0);
    act("TerminateInstances", &second.0);
    assert_eq!(ips(&ec2("tag=role=db"), &me(1)), [first.1]);
    // `auto`: here is EC2; and where nobody describes the machine, it is not.
    set("AWS_ENDPOINT_URL_EC2", &server.endpoint);
    assert!(ips(&Source::Auto, &me(1)).contains(&other.1));
    assert_eq!(ips(&ec2("group=default"), &me(1)), ips(&Source::Auto, &me(1)));
    assert!(ips(&ec2("group=nobody"), &me(1)).is_empty());
    set("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1");
    assert!(ips(&Source::Auto, &me(1)).is_empty());

    // One object for each node; more than a page of them.
    raw(
        &server.endpoint,
        "PUT",
        "/nodes",
        "<CreateBucketConfiguration><LocationConstraint>eu-west-1</LocationConstraint></CreateBucketConfiguration>",
    );
    set("AWS_REGION", "eu-west-1");
    let bucket: Source = "s3:nodes/ours".parse().unwrap();
    assert_eq!(bucket.ask(&me(1), true).unwrap(), []);
    let found = bucket.ask(&me(2), true).unwrap();
    assert_eq!(found.iter().map(|p| (p.ip, p.port)).collect::<Vec<_>>(), [(me(1).addr.ip(), Some(7474))]);
    for n in 3..1103 {
        let name = format!("{}_{}_7474", base::NodeId(n), me(n).addr.ip());
        raw(&server.endpoint, "PUT", &format!("/nodes/ours/{name}"), "x");
    }
    assert_eq!(ips(&bucket, &me(1)).len(), 1101);
    bucket.withdraw(&me(2)).unwrap();
    assert_eq!(ips(&bucket, &me(1)).len(), 1100);
    let error = "s3:nobody/here".parse::<Source>().unwrap().ask(&me(1), true).unwrap_err().to_string();
    assert!(error.contains("nobody") || error.contains("NoSuchBucket"), "{error}");
}
