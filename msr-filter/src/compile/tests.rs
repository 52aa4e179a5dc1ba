mod brute;
mod laws;
mod real;
