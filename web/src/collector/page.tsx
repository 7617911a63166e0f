export function CollectorPage() { return <h1>Collector</h1>; }
