/** The only importer of @prometheus-io/client: what a process measures, and its text at `/metrics`. */
import { Counter, Gauge, Histogram, Registry } from '@prometheus-io/client'

/** A value, or one for each of a bounded set of labels: never a device, an address or anything that a client chose. */
export type Reading = number | readonly { readonly labels: Labels; readonly value: number }[]
export type Labels = Readonly<Record<string, string>>

interface Naming {
  readonly name: string
  readonly help: string
  readonly labels?: readonly string[]
}

/** Read when it is asked for; nothing is counted in between. */
export interface ReadMetric extends Naming {
  read(): Reading | Promise<Reading>
}

export interface Metrics {
  /** A value that goes up and down. */
  gauge(metric: ReadMetric): void
  /** A plain counter that somebody else keeps; its name ends with `_total`. */
  counter(metric: ReadMetric): void
  /** @param buckets upper bounds, rising @returns how to note a value */
  histogram(
    metric: Naming & { readonly buckets: readonly number[] },
  ): (value: number, labels?: Labels) => void
  /** Names with their types, as the text has them. */
  names(): readonly { readonly name: string; readonly type: string }[]
  text(): Promise<string>
  readonly contentType: string
}

const LAG_EVERY_MS = 100
const LAG_BUCKETS_S = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5]
const MS = 1_000
const US = 1_000_000

export function openMetrics(): Metrics {
  const registry = new Registry()
  const named: { name: string; type: string }[] = []
  const note = ({ name, help, labels = [] }: Naming, type: string) => {
    named.push({ name, type })
    return { name, help, labelNames: [...labels], registers: [registry] }
  }
  return {
    gauge(metric) {
      const gauge: Gauge<string> = new Gauge<string>({
        ...note(metric, 'gauge'),
        async collect() {
          const reading = await metric.read()
          gauge.reset()
          if (typeof reading === 'number') gauge.set(reading)
          else for (const { labels, value } of reading) gauge.set({ ...labels }, value)
        },
      })
    },
    counter(metric) {
      const counter: Counter<string> = new Counter<string>({
        ...note(metric, 'counter'),
        async collect() {
          const reading = await metric.read()
          counter.reset()
          if (typeof reading === 'number') counter.inc(reading)
          else for (const { labels, value } of reading) counter.inc({ ...labels }, value)
        },
      })
    },
    histogram({ buckets, ...naming }) {
      const histogram = new Histogram<string>({ ...note(naming, 'histogram'), buckets: [...buckets] })
      return (value, labels) =>
        labels === undefined ? histogram.observe(value) : histogram.observe({ ...labels }, value)
    },
    names: () => named,
    text: () => registry.metrics(),
    contentType: registry.contentType,
  }
}

/** What every process says of itself. Returns how to stop. */
export function measureProcess(metrics: Metrics): () => void {
  metrics.gauge({
    name: 'process_resident_memory_bytes',
    help: 'Resident memory.',
    read: () => process.memoryUsage.rss(),
  })
  metrics.counter({
    name: 'process_cpu_seconds_total',
    help: 'Processor time, user and system.',
    read: () => {
      const { user, system } = process.cpuUsage()
      return (user + system) / US
    },
  })
  metrics.gauge({
    name: 'process_start_time_seconds',
    help: 'When the process began, seconds since 1970.',
    read: () => performance.timeOrigin / MS,
  })
  return measureLag(metrics)
}

/** How late a timer is that asks every 100 ms: the longest that anything else had to wait since. */
function measureLag(metrics: Metrics): () => void {
  const observe = metrics.histogram({
    name: 'muster_event_loop_lag_seconds',
    help: 'How late the event loop is, sampled every 100 ms.',
    buckets: LAG_BUCKETS_S,
  })
  let dueAt = performance.now() + LAG_EVERY_MS
  const timer = setInterval(() => {
    const now = performance.now()
    observe(Math.max(0, now - dueAt) / MS)
    dueAt = now + LAG_EVERY_MS
  }, LAG_EVERY_MS)
  timer.unref()
  return () => clearInterval(timer)
}
