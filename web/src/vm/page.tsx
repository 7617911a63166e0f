export function VmPage({ uuid }: { uuid: string; query: URLSearchParams }) { return <h1>{uuid}</h1>; }
