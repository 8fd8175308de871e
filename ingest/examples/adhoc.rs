use clap::Parser as _;
use runtime::{Kafka, Settings};
use topics::{Topic, frame, wire};

#[derive(clap::Parser)]
struct Args {
    #[command(flatten)]
    settings: Settings,
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    let kafka = Kafka::connect(&args.settings).await.unwrap();
    let (mut stack, mut seq, mut n, mut removed, mut logs): (Vec<(u64, Vec<u8>)>, u64, usize, usize, Vec<(u64, u64)>) =
        Default::default();
    let mut blocks = vec![];
    kafka
        .read_all(Topic::Blocks, |r| {
            let b: wire::BlockRecord = frame::decode(r.payload()).unwrap();
            seq += 1;
            assert_eq!(b.sequence, seq, "sequence");
            n += 1;
            blocks.push((b.sequence, b.number));
            if b.kind == 1 {
                if let Some((num, hash)) = stack.last() {
                    assert_eq!((*num + 1, &hash[..]), (b.number, &b.parent_hash[..]));
                }
                stack.push((b.number, b.hash.to_vec()));
            } else {
                assert_eq!(stack.pop().unwrap(), (b.number, b.hash.to_vec()));
                assert_eq!(stack.last().map(|(_, h)| h.clone()), Some(b.parent_hash.to_vec()));
                removed += 1;
            }
            if std::env::var("V").is_ok() {
                println!(
                    "{} {} {} txs {} safe {:?} fin {:?}",
                    b.sequence,
                    if b.kind == 1 { "+" } else { "-" },
                    b.number,
                    b.transactions.len(),
                    b.safe_number,
                    b.finalized_number
                );
            }
        })
        .unwrap();
    kafka
        .read_all(Topic::Logs, |r| {
            let b: wire::LogsRecord = frame::decode(r.payload()).unwrap();
            logs.push((b.sequence, b.number));
        })
        .unwrap();
    assert_eq!(blocks, logs);
    println!(
        "records {n} removed {removed} first {:?} tip {:?}",
        stack.first().map(|x| x.0),
        stack.last().map(|(n, h)| format!("{n} 0x{}", h.iter().map(|b| format!("{b:02x}")).collect::<String>()))
    );
}
