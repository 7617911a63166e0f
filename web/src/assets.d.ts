// Style sheets are put in by the bundler; to TypeScript they are nothing.
declare module "*.css";
