// Prints, as JSON, where the package has unpacked its Chromium and its libraries: below TMPDIR, once.
process.env.AWS_EXECUTION_ENV = "AWS_Lambda_nodejs22.x"; // so that it unpacks NSS too, which a machine may lack
const { default: chromium } = await import("@sparticuz/chromium");
const path = await chromium.executablePath();
console.log(JSON.stringify({ path, libraries: process.env.LD_LIBRARY_PATH, fonts: process.env.FONTCONFIG_PATH }));
