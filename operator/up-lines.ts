import { X509Certificate } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import type { StatusView } from '#shared/api'
import { type Layout, metricsPorts, ports } from '#shared/layout'
import type { Context } from './context.ts'

/** What runs after enrollment is ready. */
export function enrollmentLines(context: Context, plane: { files: Layout; portBase: number }): string {
  const { files, portBase } = plane
  const root = new X509Certificate(readFileSync(files.rootCertificate))
  const issuing = new X509Certificate(readFileSync(join(files.ca, 'device-ca.crt')))
  const at = ports(portBase)
  const fingerprint = root.fingerprint256
  return [
    line(
      context,
      'Root CA',
      `${shown(files.rootCertificate)}   SHA-256 ${fingerprint.slice(0, 5)}:…:${fingerprint.slice(-2)}`,
    ),
    line(context, 'Issuing CA', `valid to ${issuing.validToDate.toISOString().slice(0, 10)}`),
    line(context, 'Enrollment', `https://localhost:${at.enrollment}/.well-known/est   and /v1`),
    line(
      context,
      'Admin API',
      `https://localhost:${at.admin}/v1   (operator certificate: ${shown(files.operator)}/)`,
    ),
    line(context, 'CRL', `http://localhost:${at.http}/crl/`),
  ].join('\n')
}

/** What runs after the broker is ready, with what is off until asked for. */
export function brokerLines(
  context: Context,
  plane: { portBase: number; metrics?: boolean; webSocketPort?: number | undefined },
): string {
  const { portBase, metrics, webSocketPort } = plane
  const scraped = metricsPorts(portBase)
  const lines = [
    line(context, 'Broker', `mqtts://localhost:${ports(portBase).broker}   (client certificate required)`),
  ]
  if (webSocketPort) lines.push(line(context, 'WebSocket', `wss://localhost:${webSocketPort}/mqtt`))
  if (metrics) {
    const urls = [scraped.broker, scraped.enrollment].map((port) => `http://127.0.0.1:${port}/metrics`)
    lines.push(line(context, 'Metrics', urls.join('   ')))
  }
  return lines.join('\n')
}

/** What a start finds that is not the first one. */
export function population({ devices, holds, brokers }: StatusView): string {
  const synthetic = devices.synthetic > 0 ? `, ${devices.synthetic} simulated` : ''
  return [
    `There are ${devices.active} active devices${synthetic}`,
    `${devices.expected} expected, ${devices.retired} retired`,
    `${holds} holds; ${brokers.length} broker${brokers.length === 1 ? '' : 's'}.`,
  ].join('; ')
}

/**
 * What to try now; commands name the data directory when it is not the usual one.
 * @param example a device that is refused
 */
export function nextLines(data: string, example: string | null): string {
  const where = data === 'data' ? '' : ` --data ${data}`
  const lines = [
    [`npx muster token create --batch lab --uses 1${where}`, 'add a real device'],
    [`npx muster status --watch${where}`, 'look at the fleet'],
    [`npx muster explain ${example ?? '<device>'}${where}`, 'why was it refused?'],
  ] as const
  const width = Math.max(...lines.map(([command]) => command.length)) + 4
  return [
    'Next:',
    ...lines.map(([command, why]) => `  ${command.padEnd(width)}${why}`),
    `Ctrl-C stops; state is kept in ${data}/`,
  ].join('\n')
}

function line(context: Context, name: string, text: string): string {
  return `${context.terminal.paint('green', '✔')} ${name.padEnd(14)} ${text}`
}

/** A path as the person at the terminal would write it. */
function shown(path: string): string {
  const here = relative(process.cwd(), path)
  return here.startsWith('..') ? path : here
}
