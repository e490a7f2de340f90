import type { Command } from 'commander'
import { MusterError } from '#shared/errors'
import type { Context } from '../context.ts'
import { readTextFile } from '../json-file.ts'
import { type Invocation, noun, type Use } from '../verb.ts'
import { rolloverText } from './ca.ts'

/** Commands about the files of the CA and the registry: for the machine that the plane is on. */
export function addCaFileCommands(program: Command, use: Use): void {
  const ca =
    program.commands.find((command) => command.name() === 'ca') ?? noun(program, 'ca', 'the CAs: their files')
  ca.command('backup')
    .description('registry, CA certificates and encrypted keys in one file; the plane may run')
    .requiredOption('--out <file>', 'tar file to write, mode 0600')
    .option('--journal <directory>', 'where the journal lies, when not in the data directory')
    .action(use(backup))
  ca.command('restore')
    .description('put a backup and the journal back into a data directory whose plane is stopped')
    .argument('<file>')
    .option(
      '--journal <directory>',
      'the journal that goes on from the backup, when not in the data directory',
    )
    .option(
      '--accept-loss',
      'restore although the journal is missing, and name the serials that are known to be lost',
    )
    .action(use(restore))
  addRootCommands(ca, use)
}

/** The root, here or on a machine of its own, and what it has signed. */
function addRootCommands(ca: Command, use: Use): void {
  const init = ca
    .command('init')
    .description('make the CAs before the first start: keys in a security module, or the root elsewhere')
    .option('--offline-root', 'only keys and requests for the issuing CAs; the root is not made here')
    .option('--trust-domain <name>', 'name in every certificate', 'muster.local')
    .requiredOption('--http-base <url>', 'http://host:port of CRLs and CA certificates, in every certificate')
  for (const [name, whose] of KEY_OPTIONS) {
    init.option(
      `--${name} <uri>`,
      `PKCS#11 URI of the key of ${whose}, made there if absent; a file if not given`,
    )
  }
  init.action(use(initialise))
  ca.command('sign-issuer')
    .description('where the root is: sign such a request; the first one makes the root')
    .requiredOption('--root-dir <directory>', 'directory of the root, entered by nobody else')
    .option('--root-key <uri>', 'PKCS#11 URI of the key that the root is made with; a file if not given')
    .option('--trust-domain <name>', 'as at `ca init`', 'muster.local')
    .requiredOption('--http-base <url>', 'as at `ca init`')
    .argument('<csr>')
    .action(use(signIssuer))
  ca.command('next-root')
    .description('where the root is: make the root that is to follow it, and what links the two')
    .requiredOption('--root-dir <directory>', 'directory of the root that there is')
    .requiredOption('--new-root-dir <directory>', 'directory of the new one; then sign requests there')
    .option('--root-key <uri>', 'PKCS#11 URI of the key that it is made with; a file if not given')
    .option('--trust-domain <name>', 'as at `ca init`', 'muster.local')
    .requiredOption('--http-base <url>', 'as at `ca init`')
    .action(use(nextRoot))
  ca.command('install')
    .description(
      'put the signed certificates into their places: before the first start, or to begin a rollover',
    )
    .argument('<certificates...>')
    .action(use(install))
}

const KEY_OPTIONS = [
  ['root-key', 'the root'],
  ['device-key', 'the device CA'],
  ['infrastructure-key', 'the infrastructure CA'],
] as const

interface InitOptions {
  readonly offlineRoot?: boolean
  readonly trustDomain: string
  readonly httpBase: string
  readonly rootKey?: string
  readonly deviceKey?: string
  readonly infrastructureKey?: string
}

async function initialise(context: Context, { options }: Invocation<InitOptions>) {
  const { trustDomain, httpBase, rootKey, deviceKey, infrastructureKey } = options
  const maintenance = await context.maintenance()
  const keys = {
    ...(rootKey ? { root: rootKey } : {}),
    ...(deviceKey ? { device: deviceKey } : {}),
    ...(infrastructureKey ? { infrastructure: infrastructureKey } : {}),
  }
  const request = { data: context.options.data, trustDomain, httpBase, keys }
  if (!options.offlineRoot) {
    const root = await maintenance.init(request)
    return context.answer({ root }, () => `Made. Root CA  SHA-256 ${root}`)
  }
  if (rootKey) {
    throw new MusterError(
      'invalid_request',
      'Cannot take --root-key: with --offline-root it is of `ca sign-issuer`',
    )
  }
  const requests = await maintenance.initOffline(request)
  context.say(
    `Take these to the root: muster ca sign-issuer --root-dir <directory> --trust-domain ${trustDomain} --http-base ${httpBase} <csr>`,
  )
  return context.answer({ requests }, () => requests.join('\n'))
}

async function signIssuer(
  context: Context,
  { args, options }: Invocation<{ rootDir: string; rootKey?: string; trustDomain: string; httpBase: string }>,
) {
  const [csr = ''] = args
  const { rootDir, rootKey = null, trustDomain, httpBase } = options
  const maintenance = await context.maintenance()
  const chain = await maintenance.signIssuer({ rootDirectory: rootDir, rootKey, trustDomain, httpBase, csr })
  context.say('Take it back to the plane: muster ca install <chain...>')
  return context.answer({ chain }, () => chain)
}

interface NextRootOptions {
  readonly rootDir: string
  readonly newRootDir: string
  readonly rootKey?: string
  readonly trustDomain: string
  readonly httpBase: string
}

async function nextRoot(context: Context, { options }: Invocation<NextRootOptions>) {
  const { rootDir: rootDirectory, newRootDir: newRootDirectory, rootKey = null, ...names } = options
  const maintenance = await context.maintenance()
  const root = await maintenance.nextRoot({ ...names, rootDirectory, newRootDirectory, rootKey })
  context.say(
    `Sign the requests of the plane with it: muster ca sign-issuer --root-dir ${newRootDirectory} … <csr>`,
  )
  return context.answer({ root }, () => `Made. Next root CA  SHA-256 ${root}`)
}

/** A plane that was never started has no admin API; one that was takes the certificates as the start of a rollover. */
async function install(context: Context, { args }: Invocation<object>) {
  const { data, profile } = context.options
  const maintenance = profile === undefined ? await context.maintenance() : null
  if (maintenance?.isAwaiting({ data })) {
    const root = await maintenance.install({ data, certificates: args })
    return context.answer({ root }, () => `Installed. Root CA  SHA-256 ${root}`)
  }
  const certificates = args.map((path) => readTextFile(path))
  const rollover = await context.plane().startRollover({ certificates })
  context.say('Devices hear of the new bundle. Then: muster ca rollover cut-over')
  return context.answer(rollover, () => rolloverText(rollover))
}

interface Options {
  readonly out: string
  readonly journal?: string
  readonly acceptLoss?: boolean
}

async function backup(context: Context, { options }: Invocation<Options>) {
  const { data } = context.options
  const maintenance = await context.maintenance()
  const made = maintenance.backup({ data, out: options.out, journal: options.journal ?? null })
  for (const path of made.leftOut) context.say(`Left out, because it is not encrypted: ${path}`)
  context.say(
    'The passphrase of the CA keys is not in it: keep it elsewhere. The journal goes on from here: keep it too.',
  )
  return context.answer(
    { ...made, out: options.out },
    () => `${options.out}  ${made.files.length} files, up to commit ${made.commit}`,
  )
}

async function restore(context: Context, { args, options }: Invocation<Options>) {
  const [file = ''] = args
  const { data } = context.options
  const maintenance = await context.maintenance()
  const restored = await maintenance.restore({
    data,
    backup: file,
    journal: options.journal ?? null,
    acceptLoss: options.acceptLoss ?? false,
  })
  const { lost, revokedAgain, replayed, madeAt } = restored
  if (options.acceptLoss) {
    context.say('Make a new backup now: the older ones no longer go on to this registry.')
  }
  return context.answer(restored, () =>
    [
      `Restored the backup of ${new Date(madeAt).toISOString()} and ${replayed} commit(s) of the journal into ${data}.`,
      ...lost.map(
        (serial) => `lost     ${serial}  brokers refuse it; the device needs \`muster device reissue\``,
      ),
      ...revokedAgain.map((serial) => `revoked  ${serial}  on no record, and revoked again`),
    ].join('\n'),
  )
}
