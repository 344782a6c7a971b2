//! Requests to the S3 server fail on the way: refused with 503, cut in the middle of an upload, lost
//! with or without having been carried out, never answered, answered by half. What was acknowledged is
//! there, what was refused is not, and no batch is torn.
//!
//! A proxy in front of the server does that, one request in some, at random by a seed
//! (`CONFORMANCE_SEED` chooses others). Needs `scripts/with-s3`, like `s3`.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use libtest_mimic::{Arguments, Failed, Trial};
use storage_core::metrics::time::from_ms;
use storage_core::{MetricRecord, Outcome, StorageBackend, TimeRange};
use storage_parquet::{ParquetBackend, ParquetOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const NAME: &str = "faults_on_the_way_lose_nothing_and_tear_nothing";
const BATCH: i64 = 50;

fn main() -> ExitCode {
    let required = std::env::var("CONFORMANCE_REQUIRE").unwrap_or_default();
    let is_required =
        required.split(',').any(|word| ["parquet_s3", "all", "1"].contains(&word.trim()));
    let reason = "needs scripts/with-s3";
    let trial = match std::env::var("STORAGE_TEST_S3") {
        Ok(server) => Trial::test(NAME, move || test(&server)),
        Err(_) if is_required => Trial::test(NAME, move || Err(Failed::from(reason))),
        Err(_) => Trial::test(NAME, || Ok(())).with_ignored_flag(true).with_kind(reason),
    };
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}

/// What happens to a request on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Answered with 503 by the proxy.
    Refused,
    /// Half of the request arrives.
    UploadCut,
    /// It is carried out, and nobody hears of it.
    AnswerLost,
    /// Half of the answer arrives.
    AnswerCut,
    /// Neither carried out nor answered.
    Silence,
}

const FAULTS: [Fault; 5] =
    [Fault::Refused, Fault::UploadCut, Fault::AnswerLost, Fault::AnswerCut, Fault::Silence];

/// Hands requests on to a server, one to a connection; one in `one_in` meets a fault. The creation of an
/// object of which nobody has heard is forbidden, half of the times, when it is tried again.
struct Proxy {
    upstream: String,
    random: std::sync::Mutex<fastrand::Rng>,
    /// The first lines of requests that created an object, and whose answer was lost.
    unheard: std::sync::Mutex<HashSet<String>>,
    one_in: u32,
    done: [AtomicU64; FAULTS.len()],
}

impl Proxy {
    async fn start(server: &str, seed: u64, one_in: u32) -> (Arc<Self>, String) {
        let upstream = server.trim_start_matches("http://").to_owned();
        let random = std::sync::Mutex::new(fastrand::Rng::with_seed(seed));
        let (unheard, done) = Default::default();
        let proxy = Arc::new(Self { upstream, random, unheard, one_in, done });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let accepting = Arc::clone(&proxy);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let proxy = Arc::clone(&accepting);
                // A client that goes away is no matter.
                tokio::spawn(async move { proxy.serve(client).await });
            }
        });
        (proxy, url)
    }

    fn draw(&self) -> Option<Fault> {
        let mut random = self.random.lock().unwrap();
        if random.u32(..self.one_in) != 0 {
            return None;
        }
        let place = random.usize(..FAULTS.len());
        self.done[place].fetch_add(1, Ordering::Relaxed);
        Some(FAULTS[place])
    }

    /// Whether a request is forbidden that creates what may be there already.
    fn is_forbidden(&self, request: &[u8]) -> bool {
        let is_unheard = self.unheard.lock().unwrap().remove(&first_line(request));
        is_unheard && self.random.lock().unwrap().bool()
    }

    async fn serve(&self, mut client: TcpStream) -> std::io::Result<()> {
        let request = read_request(&mut client).await?;
        if self.is_forbidden(&request) {
            let answer =
                b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            return client.write_all(answer).await;
        }
        let fault = self.draw();
        match fault {
            Some(Fault::Refused) => {
                let answer =
                    b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                return client.write_all(answer).await;
            }
            Some(Fault::Silence) => {
                // Until the client has had enough.
                return client.read(&mut [0]).await.map(drop);
            }
            _ => {}
        }
        let mut server = TcpStream::connect(&self.upstream).await?;
        if fault == Some(Fault::UploadCut) {
            server.write_all(&request[..request.len() / 2]).await?;
            return server.shutdown().await;
        }
        server.write_all(&request).await?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer).await?;
        let is_lost = matches!(fault, Some(Fault::AnswerLost | Fault::AnswerCut));
        if is_lost && answer.starts_with(b"HTTP/1.1 200") && creates(&request) {
            self.unheard.lock().unwrap().insert(first_line(&request));
        }
        match fault {
            Some(Fault::AnswerLost) => Ok(()),
            Some(Fault::AnswerCut) => client.write_all(&answer[..answer.len() / 2]).await,
            _ => client.write_all(&answer).await,
        }
    }
}

fn first_line(request: &[u8]) -> String {
    String::from_utf8_lossy(request).lines().next().unwrap_or_default().to_owned()
}

/// Whether a request creates an object where none is.
fn creates(request: &[u8]) -> bool {
    let head = request.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(head).to_ascii_lowercase().contains("\r\nif-none-match:")
}

/// Reads a request, and tells the server to end the connection with its answer.
async fn read_request(client: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let head = loop {
        if client.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(place) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break place;
        }
    };
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length.map_or(0, |length| length.trim().parse().unwrap());
    while bytes.len() < head + 4 + length {
        if client.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    bytes.splice(head..head, *b"\r\nConnection: close");
    Ok(bytes)
}

async fn open(server: &str, location: &str) -> storage_core::Result<ParquetBackend> {
    let url = format!(
        "parquet+s3://storage-tests/{location}?aws_endpoint={server}&allow_http=true&timeout=500ms\
         &aws_region=us-east-1&aws_access_key_id=test&aws_secret_access_key=test"
    );
    let options = ParquetOptions::from_url(&url)?.merge_samples(500).hour_samples(100);
    ParquetBackend::open(options).await
}

fn batch(number: i64) -> Vec<MetricRecord> {
    let of = |no: i64| {
        let record = MetricRecord::new("a", from_ms(no * 60_000), "b", number as f64);
        record.with_metadata(serde_json::json!({ "no": no }))
    };
    (number * BATCH..(number + 1) * BATCH).map(of).collect()
}

fn test(server: &str) -> Result<(), Failed> {
    let seed = conformance_tests::model_check::seed_from_env()?.unwrap_or(5);
    tokio::runtime::Runtime::new()?.block_on(async {
        for (round, batches, one_in) in [(0, 40, 8), (1, 15, 2)] {
            let location = format!("faults-{seed}-{round}");
            run(server, &location, seed + round, batches, one_in).await;
        }
    });
    Ok(())
}

async fn run(server: &str, location: &str, seed: u64, batches: i64, one_in: u32) {
    let (proxy, url) = Proxy::start(server, seed, one_in).await;
    let mut store = None;
    while store.is_none() {
        store = open(&url, location).await.ok();
    }
    let store = store.unwrap();
    let (mut certain, mut unsure, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..batches {
        match store.write_batch(&batch(number)).await {
            Ok(()) => certain.push(number),
            Err(error) if error.outcome() == Outcome::Unknown => unsure.push(number),
            Err(_) => refused.push(number),
        }
        // A question fails or gives whole batches, none of the acknowledged ones missing.
        if let Ok(found) = store.query_range("a", "b", TimeRange::all()).await {
            assert_whole(&found, &certain, &refused, seed);
        }
        if number % 15 == 14 {
            // It may fail; then the rows stay where they are.
            let _ = store.compact().await;
        }
    }
    let _ = store.close().await;
    let direct = open(server, location).await.unwrap();
    let found = direct.query_range("a", "b", TimeRange::all()).await.unwrap();
    assert_whole(&found, &certain, &refused, seed);
    assert!(certain.len() as i64 > batches / 2, "seed {seed}: {unsure:?} {refused:?}");
    direct.compact().await.unwrap();
    assert_eq!(direct.query_range("a", "b", TimeRange::all()).await.unwrap(), found);
    assert_eq!(direct.check().await.unwrap().problems, Vec::<String>::new(), "seed {seed}");
    let half = from_ms(batches / 2 * BATCH * 60_000);
    let early = found.iter().filter(|record| record.timestamp < half).count();
    assert_eq!(direct.prune_before(half).await.unwrap(), early as u64);
    direct.close().await.unwrap();
    let faults = proxy.done.each_ref().map(|count| count.load(Ordering::Relaxed));
    assert!(faults.iter().all(|count| *count > 0), "seed {seed}: {FAULTS:?} {faults:?}");
    #[allow(clippy::print_stdout)] // what a run is worth
    {
        let (certain, unsure, refused) = (certain.len(), unsure.len(), refused.len());
        println!(
            "{NAME}: seed {seed}, {FAULTS:?} {faults:?}, {certain} batches acknowledged, \
             {unsure} unknown, {refused} refused, 0 lost"
        );
    }
}

/// Every batch is there whole or not at all; all of `certain`, none of `refused`.
fn assert_whole(found: &[MetricRecord], certain: &[i64], refused: &[i64], seed: u64) {
    let mut numbers: Vec<i64> = found.iter().map(|record| record.value as i64).collect();
    numbers.dedup();
    let expected: Vec<_> = numbers.iter().flat_map(|number| batch(*number)).collect();
    assert!(found == expected, "seed {seed}: a batch is torn");
    assert!(certain.iter().all(|number| numbers.contains(number)), "seed {seed}: {numbers:?}");
    assert!(!refused.iter().any(|number| numbers.contains(number)), "seed {seed}: {refused:?}");
}
