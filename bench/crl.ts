import { randomBytes } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { generateKey, privateKeyPem } from '#shared/pki/keys'
import { type Bench, type BenchContext, compare, cpuMsEach, type Measured, type Side } from './harness.ts'
import { newDirectory } from './plane.ts'
import { need, programBeside, runPinned, versionOf } from './processes.ts'

const ENTRIES = 100_000
const ROUNDS = 20

export const crl: Bench = {
  name: 'crl',
  says: 'a CRL of 100 000 entries rebuilt, ms of processor, beside openssl ca -gencrl',
  async run(context) {
    need('openssl')
    const entries = Math.ceil(ENTRIES * Math.min(1, context.effort))
    const how = { context, unit: 'ms', better: 'lower', figure: cpuMsEach } as const
    const openssl = opensslSide(context, entries)
    context.say('one more revocation on a list that is known')
    const again = await compare({ ours: oursSide('again', entries), peers: [openssl] }, how)
    context.say('every entry encoded anew, as at a start')
    const whole = await compare({ ours: oursSide('whole', entries), peers: [openssl] }, how)
    context.say('one more revocation on its shard')
    const shard = await compare({ ours: oursSide('shard', entries), peers: [openssl] }, how)
    return { ...again, also: { whole, shard } }
  },
}

function oursSide(which: 'again' | 'whole' | 'shard', entries: number): Side {
  const program = programBeside(import.meta.url, 'crl-rebuild')
  return {
    name: 'muster',
    command: `node bench/crl-rebuild.ts ${entries} ${ROUNDS}`,
    version: `Node ${process.versions.node}, OpenSSL ${process.versions.openssl}`,
    measure: async () => {
      const said = await runPinned(
        [process.execPath, program, String(entries), String(ROUNDS)],
        process.cwd(),
      )
      return (JSON.parse(said) as Record<typeof which, Measured>)[which] // our own program wrote it
    },
  }
}

/** The index in which `openssl ca` keeps its certificates, all revoked; the start of the program is in the figure. */
function opensslSide(context: BenchContext, entries: number): Side {
  const directory = newDirectory(context)
  const line = () =>
    `R\t360101000000Z\t260101000000Z,keyCompromise\t4${randomBytes(16).toString('hex').slice(1).toUpperCase()}\tunknown\t/CN=bench`
  const files = {
    'index.txt': `${Array.from({ length: entries }, line).join('\n')}\n`,
    'index.txt.attr': 'unique_subject = no\n',
    'ca.key': privateKeyPem(generateKey()),
    crlnumber: '01\n',
    'ca.cnf':
      '[ca]\ndefault_ca=c\n[c]\ndatabase=index.txt\ncrlnumber=crlnumber\ndefault_md=sha256\ndefault_crl_days=1\ncrl_extensions=e\n[e]\nauthorityKeyIdentifier=keyid\n[req]\ndistinguished_name=n\n[n]\n[v]\nbasicConstraints=critical,CA:TRUE\nsubjectKeyIdentifier=hash\n',
  }
  for (const [name, text] of Object.entries(files))
    writeFileSync(join(directory, name), text, { mode: 0o600 })
  const command = 'openssl ca -config ca.cnf -gencrl -keyfile ca.key -cert ca.crt -out crl.pem'
  const certificate =
    'test -f ca.crt || openssl req -x509 -new -key ca.key -subj /CN=bench -config ca.cnf -extensions v -out ca.crt'
  return {
    name: 'openssl ca -gencrl',
    command,
    version: versionOf('openssl', ['version']),
    measure: async () => {
      await runPinned(['sh', '-c', certificate], directory)
      const said = await runPinned(['sh', '-c', `${command} 2>/dev/null && times`], directory)
      return { count: 1, cpuS: childSeconds(said) }
    },
  }
}

/** The second line that the shell's `times` says: user and system time of what it ran. */
export function childSeconds(said: string): number {
  const times = said.split('\n')[1]?.matchAll(/(\d+)m([\d.]+)s/g) ?? []
  return Array.from(times, ([, minutes, seconds]) => Number(minutes) * 60 + Number(seconds)).reduce(
    (sum, one) => sum + one,
    0,
  )
}
