//! The same in Rust, with nothing but the standard library:
//! `rustc examples/continue.rs -L native=LIBDIR -l dylib=titans`, then `continue BUNDLE LIBONNXRUNTIME TEXT`.

use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::io::Write;
use std::ptr::{null, null_mut};

#[repr(C)]
struct Error {
    code: c_int,
    message: [c_char; 1020],
}

#[repr(C)]
struct Options {
    size: usize,
    onnxruntime: *const c_char,
    kernels: *const c_char,
    provider: *const c_char,
    threads: i32,
}

#[repr(C)]
struct Sampling {
    size: usize,
    temperature: f64,
    top_p: f64,
    min_p: f64,
    repetition_penalty: f64,
    top_k: i64,
    seed: i64,
    max_new_tokens: i64,
    stop_ids: *const i64,
    stop_count: usize,
    ignore_eos: i32,
}

extern "C" {
    fn titans_options_init(options: *mut Options);
    fn titans_model_load(bundle: *const c_char, options: *const Options, model: *mut *mut c_void, error: *mut Error) -> c_int;
    fn titans_model_close(model: *mut c_void);
    fn titans_session_open(model: *mut c_void, session: *mut *mut c_void, error: *mut Error) -> c_int;
    fn titans_session_close(session: *mut c_void);
    fn titans_sampling_init(model: *const c_void, sampling: *mut Sampling, error: *mut Error) -> c_int;
    fn titans_generator_open(session: *mut c_void, prompt: *const i64, count: usize, sampling: *const Sampling,
                             generator: *mut *mut c_void, error: *mut Error) -> c_int;
    fn titans_generator_next(generator: *mut c_void, token: *mut i64, ended: *mut c_int, error: *mut Error) -> c_int;
    fn titans_generator_close(generator: *mut c_void);
}

fn check(code: c_int, error: &Error) {
    if code != 0 {
        let message = unsafe { CStr::from_ptr(error.message.as_ptr()) };
        eprintln!("error: {}", message.to_string_lossy());
        std::process::exit(1);
    }
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    if words.len() != 4 {
        eprintln!("usage: {} BUNDLE LIBONNXRUNTIME TEXT", words[0]);
        std::process::exit(2);
    }
    let (bundle, library) = (CString::new(words[1].as_str()).unwrap(), CString::new(words[2].as_str()).unwrap());
    let prompt: Vec<i64> = words[3].bytes().map(i64::from).collect();
    let mut error = Error { code: 0, message: [0; 1020] };
    let (mut model, mut session, mut generator) = (null_mut(), null_mut(), null_mut());
    unsafe {
        let mut options: Options = std::mem::zeroed();
        titans_options_init(&mut options);
        options.onnxruntime = library.as_ptr();
        check(titans_model_load(bundle.as_ptr(), &options, &mut model, &mut error), &error);
        check(titans_session_open(model, &mut session, &mut error), &error);
        let mut sampling = Sampling { stop_ids: null(), ..std::mem::zeroed() };
        check(titans_sampling_init(model, &mut sampling, &mut error), &error);
        sampling.temperature = 0.0;
        sampling.max_new_tokens = 32;
        check(titans_generator_open(session, prompt.as_ptr(), prompt.len(), &sampling, &mut generator, &mut error), &error);
        let mut ended = 0;
        let mut bytes = Vec::new();
        while ended == 0 {
            let mut token = -1;
            check(titans_generator_next(generator, &mut token, &mut ended, &mut error), &error);
            if let 0..=255 = token {
                bytes.push(token as u8);
            }
        }
        bytes.push(b'\n');
        std::io::stdout().write_all(&bytes).unwrap();
        titans_generator_close(generator);
        titans_session_close(session);
        titans_model_close(model);
    }
}
