//! Files of statistics: arbitrary bytes, and arbitrary arrays under a valid header.
#![no_main]

use libfuzzer_sys::fuzz_target;
use taper::stats::file;

fuzz_target!(|bytes: &[u8]| {
    use_all(bytes);
    let split = bytes.len().min(64);
    let (head, data) = bytes.split_at(split);
    let squares = data.len() / 8 * 8;
    let header = format!(
        "{{\"__metadata__\":{{\"taper-stats\":\"{{\\\"version\\\":1,\\\"layers\\\":{{\\\"q\\\":0}}}}\"}},\
         \"0.count\":{{\"dtype\":\"U64\",\"shape\":[1],\"data_offsets\":[0,8]}},\
         \"0.sum_squares\":{{\"dtype\":\"F64\",\"shape\":[{}],\"data_offsets\":[8,{}]}}}}",
        squares / 8,
        8 + squares
    );
    let count = [head, &[0; 8]].concat();
    let length = (header.len() as u64).to_le_bytes();
    use_all(&[&length, header.as_bytes(), &count[..8], &data[..squares]].concat());
});

fn use_all(bytes: &[u8]) {
    if let Ok(stats) = file::read(bytes) {
        for (_, seen) in stats.iter() {
            assert!(seen.mean_squares().len() == seen.inputs() && seen.count > 0);
        }
    }
}
